"""The loop of the `constant` profile: every request runs on a clock of its own.

The first token comes `ttft_ms` after admission and the next ones every `itl_ms` after it, exactly,
whoever else runs; what falls on one instant is one step. Queue, seats, pages, prefix cache and
preemption are those of the step loop, so the same faults can be staged with easy arithmetic. There
is no closed form here: a step costs a heap operation per token.

With `itl_ms` 0 a decode step takes no time. Then the caller sets the pace: such steps happen only
in `advance`, at most `zero_time_steps_max` of them a call, and while some remain the model's clock
stands still, so `next_step_at` lies in the past and says: call again.
"""

from heapq import heappop, heappush

from components.domain.engine_model.events import FirstToken, StepEnded
from components.domain.engine_model.run import StepWork
from components.domain.engine_model.state import EngineState, Sequence
from components.domain.pages import pages_for
from components.domain.profiles import ConstantProfile

# (due, seat, life, sequence): seats number admissions, and an entry is void in a later life
_Entry = tuple[float, int, int, Sequence]


class ConstantLoop:
    """Tokens of one engine at the times of `profile`, divided by `speed`."""

    __slots__ = (
        "_busy_s",
        "_busy_since_s",
        "_decoding",
        "_itl_s",
        "_prefills",
        "_state",
        "_tokens",
        "_ttft_s",
    )

    def __init__(self, profile: ConstantProfile, state: EngineState, speed: float) -> None:
        self._ttft_s = profile.ttft_ms / speed / 1e3
        self._itl_s = profile.itl_ms / speed / 1e3
        self._state = state
        self._prefills: list[_Entry] = []
        self._tokens: list[_Entry] = []
        # Since when it decodes, and how many tokens it had then.
        self._decoding: dict[Sequence, tuple[float, int]] = {}
        self._busy_s = 0.0
        self._busy_since_s: float | None = None

    # What the engine model asks

    @property
    def busy_s(self) -> float:
        """Time in which something ran, until the last call."""
        if self._busy_since_s is None:
            return self._busy_s
        return self._busy_s + self._state.clock_s - self._busy_since_s

    @property
    def context_tokens(self) -> int:
        return sum(sequence.computed + 1 for sequence in self._decoding)

    def next_step_at(self) -> float | None:
        due_s = self._next_due_s()
        return None if due_s is None else max(due_s, self._state.clock_s)

    def next_event_at(self) -> float | None:
        """As `next_step_at`, but past the steps that change nothing but token counts."""
        step_at = self.next_step_at()
        if step_at is None or not self._itl_s:
            return step_at
        prefill = self._top(self._prefills)
        ends_s = [self._due_s(s, s.remaining if s.emitted else 1) for s in self._decoding]
        event_at = min([*ends_s, prefill[0]] if prefill else ends_s)
        steps = int((event_at - step_at) / self._itl_s) + 2
        pages = sum(pages_for(s.computed + steps) - s.pages for s in self._decoding)
        return event_at if pages <= self._state.cache.available else step_at

    def settle(self, now_s: float, zero_time_steps: int | None) -> None:
        """Let everything happen that happens until `now_s`; zero-time steps only as allowed."""
        if not self._itl_s:
            if not self._pace(now_s, zero_time_steps):
                return
        else:
            while (at_s := self._next_due_s()) is not None and at_s <= now_s:
                self._step(at_s)
        self._state.clock_s = now_s

    def interrupt(self, now_s: float) -> None:
        """Nothing is planned that a change could void."""

    def remove(self, sequence: Sequence) -> None:
        self._decoding.pop(sequence, None)

    def resume(self, now_s: float) -> None:
        """Seat who finds a place, and note whether anything runs."""
        while (sequence := self._state.admit(now_s, 0)) is not None:
            if sequence.kv_arrives:
                self._decode(sequence, now_s)
            else:
                entry = (now_s + self._ttft_s, sequence.seat, sequence.life, sequence)
                heappush(self._prefills, entry)
        busy = bool(self._state.running)
        if busy and self._busy_since_s is None:
            self._busy_since_s = now_s
        elif not busy and self._busy_since_s is not None:
            self._busy_s += now_s - self._busy_since_s
            self._busy_since_s = None

    # For load reports

    def last_step(self) -> StepWork | None:
        """None: each request has a clock of its own, and no time belongs to a step."""
        return None

    def step_ms(self) -> float:
        return self._itl_s * 1e3 if self._decoding else 0.0

    def prefill_ms(self, prompt_tokens: int, hit_tokens: int) -> float:
        return self._ttft_s * 1e3

    def backlog_ms(self, now_s: float) -> float:
        """Time until the running prompts are prefilled; when the queue moves is not foreseen."""
        left_s = [due_s - now_s for due_s, _, life, s in self._prefills if life == s.life]
        return max([0.0, *left_s]) * 1e3

    # One instant

    def _step(self, at_s: float, *, tokens: bool = True) -> None:
        """What is due by `at_s`: prompts that are complete and, with `tokens`, decoded tokens."""
        state = self._state
        state.clock_s = at_s
        decoded = self._grow(at_s) if tokens else []
        prefilled = self._pop(self._prefills, at_s)
        for sequence in decoded:
            sequence.computed += 1
            sequence.emitted += 1
        for sequence in prefilled:
            sequence.computed = sequence.target
            state.publish(sequence, at_s)
        emitting = [sequence for sequence in prefilled if state.prefilled(sequence, at_s)]
        ids = tuple(sequence.request_id for sequence in (*decoded, *emitting))
        state.steps += 1
        state.output_tokens += len(ids)
        state.events.append(StepEnded(at_s, state.steps, 1, ids))
        self._report(decoded, prefilled, at_s)
        for sequence in emitting:
            self._decode(sequence, at_s)
        self.resume(at_s)

    def _grow(self, at_s: float) -> list[Sequence]:
        """Those with a token due by `at_s`, each with a page for it: the newest are preempted."""
        state = self._state
        due = sorted(self._pop(self._tokens, at_s), key=lambda sequence: sequence.seat)
        lives = [sequence.life for sequence in due]
        for sequence, life in zip(due, lives, strict=True):
            if pages_for(sequence.computed + 1) == sequence.pages:
                continue
            while sequence.life == life and not state.cache.available:
                newest = state.newest()
                self.remove(newest)
                state.requeue(newest, at_s)
            if sequence.life == life:
                state.grow(sequence, at_s)
        return [s for s, life in zip(due, lives, strict=True) if s.life == life]

    def _report(self, decoded: list[Sequence], prefilled: list[Sequence], at_s: float) -> None:
        state = self._state
        for sequence in decoded:
            if sequence.emitted == 1:
                state.events.append(FirstToken(sequence.request_id, at_s))
        for sequence in prefilled:
            state.report_prefilled(sequence, at_s)
        for sequence in decoded:
            self._next(sequence, at_s)

    def _decode(self, sequence: Sequence, at_s: float) -> None:
        """The sequence decodes from `at_s` on."""
        self._decoding[sequence] = (at_s, sequence.emitted)
        self._next(sequence, at_s)

    def _next(self, sequence: Sequence, at_s: float) -> None:
        """The sequence waits for its next token, or has them all."""
        if sequence.remaining:
            due_s = self._due_s(sequence, 1)
            heappush(self._tokens, (due_s, sequence.seat, sequence.life, sequence))
        else:
            self.remove(sequence)
            self._state.finish(sequence, at_s)

    def _due_s(self, sequence: Sequence, tokens: int) -> float:
        """When a decoding sequence has its next `tokens` tokens, if nothing interferes."""
        since_s, emitted = self._decoding[sequence]
        return since_s + (sequence.emitted - emitted + tokens) * self._itl_s

    def _pace(self, now_s: float, zero_time_steps: int | None) -> bool:
        """Steps with `itl_ms` 0; False when some remain. None: a change comes, decode none."""
        left = zero_time_steps
        while True:
            prefill, token = self._top(self._prefills), self._top(self._tokens)
            if token and left is not None:
                if not left:
                    return False
                left -= 1
                self._step(self._state.clock_s)
            elif prefill and prefill[0] <= now_s:
                self._step(prefill[0], tokens=False)
            else:
                return True

    # Heaps whose void entries are dropped when they come up

    def _next_due_s(self) -> float | None:
        due = [top[0] for top in (self._top(self._prefills), self._top(self._tokens)) if top]
        return min(due, default=None)

    @staticmethod
    def _top(heap: list[_Entry]) -> _Entry | None:
        while heap and heap[0][2] != heap[0][3].life:
            heappop(heap)
        return heap[0] if heap else None

    def _pop(self, heap: list[_Entry], at_s: float) -> list[Sequence]:
        """Take what is due by `at_s`."""
        due = []
        while (top := self._top(heap)) and top[0] <= at_s:
            due.append(heappop(heap)[3])
        return due
