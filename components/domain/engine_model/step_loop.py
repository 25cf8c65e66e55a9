"""The step loop of a real engine: one batch, one step after the other, continuous batching.

A step begins where the last one ended. At its beginning, in this order:

1. every decoding sequence gets the page its next token needs, if it needs one; while there are not
   enough, the newest running sequence is preempted;
2. every decoding sequence takes one token of the step's budget, the rest goes to prompts: first
   those in progress, then those admitted from the queue, in order, who find a seat and pages.

At its end the chunks are computed, each decoding sequence has one more token, and a prompt that is
complete has its first one. When no prompt has work, the next step differs from this one only by its
context, so a whole *run* of steps is planned at once, up to the next thing that can change: a
sequence with all its tokens, or no page left. A call from outside (submit, finish, cancel,
release) ends the run with the step in progress; if that step began at this very instant it is
planned anew instead, so that what happens at one instant is decided together.
"""

from components.domain.engine_model.decode_batch import DecodeBatch
from components.domain.engine_model.events import FirstToken, StepEnded
from components.domain.engine_model.run import Run, StepWork
from components.domain.engine_model.state import EngineState, Sequence
from components.domain.profiles import StepTimeProfile


class StepLoop:
    """Steps of one engine with the step times of `profile`, divided by `speed`."""

    __slots__ = ("_batch", "_busy_s", "_ended", "_profile", "_run", "_s_per_ms", "_state")

    def __init__(self, profile: StepTimeProfile, state: EngineState, speed: float) -> None:
        self._profile = profile
        self._state = state
        self._s_per_ms = 1e-3 / speed
        self._batch = DecodeBatch()
        self._run: Run | None = None
        self._ended: Run | None = None  # whose step was the last one that ended
        self._busy_s = 0.0

    # What the engine model asks

    @property
    def busy_s(self) -> float:
        """Time spent in steps that have ended."""
        run = self._run
        return self._busy_s + (run.end_s(run.done) - run.start_s if run else 0.0)

    @property
    def context_tokens(self) -> int:
        return self._batch.context_tokens

    def next_step_at(self) -> float | None:
        return self._run.end_s(self._run.done + 1) if self._run else None

    def next_event_at(self) -> float | None:
        return self._run.end_s(self._run.steps) if self._run else None

    def settle(self, now_s: float, zero_time_steps: int | None) -> None:
        """Let everything happen that happens until `now_s`; a step that begins then has begun."""
        while (run := self._run) is not None:
            ended = run.ended_by(now_s)
            if ended > run.done:
                self._end_steps(run, ended)
            if run.done < run.steps:
                break
            self._close()
            self._plan(run.end_s(run.steps))
        self._state.clock_s = now_s

    def interrupt(self, now_s: float) -> None:
        """Something is about to change: nothing beyond the step in progress stays planned."""
        run = self._run
        if run is None:
            return
        if run.end_s(run.done) < now_s:
            run.steps = run.done + 1
            return
        batch = self._batch
        if batch.grown > batch.ticks:
            self._state.cache.private -= batch.pages_at(batch.grown)
            batch.grown = batch.ticks
        self._close()

    def remove(self, sequence: Sequence) -> None:
        """The sequence stops running at once; the step in progress goes on without it."""
        if sequence in self._batch:
            self._batch.leave(sequence)
        elif self._run:
            self._run.chunks = [c for c in self._run.chunks if c[0] is not sequence]

    def resume(self, now_s: float) -> None:
        """What was about to change has changed."""
        if self._run is None:
            self._plan(now_s)

    # For load reports

    def last_step(self) -> StepWork | None:
        return self._ended.last_step() if self._ended else None

    def step_ms(self) -> float:
        """Time of a decode step as things are; 0 when nothing decodes."""
        batch = self._batch
        if not batch:
            return 0.0
        step_ms = self._profile.step_ms(decoding=len(batch), context_tokens=batch.context_tokens)
        return step_ms * self._s_per_ms * 1e3

    def prefill_ms(self, prompt_tokens: int, hit_tokens: int) -> float:
        new_tokens = max(1, prompt_tokens - hit_tokens)
        alone_ms = self._profile.prefill_ms(
            new_tokens, self._state.limits.step_tokens_max, prompt_tokens - new_tokens
        )
        return alone_ms * self._s_per_ms * 1e3

    def backlog_ms(self, now_s: float) -> float:
        """Time until the prompts here are prefilled: full steps shared with today's decodes.

        Waiting prompts count without prefix hits. Time spent in the step in progress is taken off.
        """
        profile, batch = self._profile, self._batch
        step_tokens = self._state.limits.step_tokens_max
        step_ms = (
            profile.linear_ms(step_tokens)
            + profile.host_ms
            + profile.decode_attention_ms(len(batch), batch.context_tokens)
        )
        token_ms = step_ms / max(1, step_tokens - len(batch))
        work_ms = 0.0
        for sequence in self._state.unfinished_prompts():
            left = sequence.to_prefill
            pairs = left * (sequence.target - left / 2)
            work_ms += left * token_ms + profile.q_ms_per_pair * pairs
        spent_s = 0.0
        if self._run and self._run.chunks:
            spent_s = now_s - self._run.start_s
        return max(0.0, work_ms * self._s_per_ms - spent_s) * 1e3

    # A step ends

    def _end_steps(self, run: Run, ended: int) -> None:
        """Steps `run.done + 1` to `ended` have ended."""
        state, batch = self._state, self._batch
        at_s, steps = run.end_s(ended), ended - run.done
        self._grow(run, ended)
        batch.tick(steps)
        prefilled = self._compute(run.chunks, at_s)
        ids = batch.ids
        emitting = [sequence for sequence in prefilled if state.prefilled(sequence, at_s)]
        if emitting:
            ids = (*ids, *(sequence.request_id for sequence in emitting))
        state.steps += steps
        state.output_tokens += steps * len(ids)
        state.events.append(StepEnded(at_s, state.steps, steps, ids))
        run.done = ended
        self._ended = run
        self._report(prefilled, emitting, at_s)
        if run.done < run.steps:
            self._grow(run, run.done + 1)

    def _compute(self, chunks: list[tuple[Sequence, int]], at_s: float) -> list[Sequence]:
        """The chunks are computed; the prompts that are complete with that."""
        prefilled = []
        for sequence, tokens in chunks:
            sequence.computed += tokens
            self._state.publish(sequence, at_s)
            if not sequence.to_prefill:
                prefilled.append(sequence)
        return prefilled

    def _report(self, prefilled: list[Sequence], emitting: list[Sequence], at_s: float) -> None:
        state, batch = self._state, self._batch
        if batch.fresh:
            for sequence in batch.fresh:
                state.events.append(FirstToken(sequence.request_id, at_s))
            batch.fresh.clear()
        for sequence in prefilled:
            state.report_prefilled(sequence, at_s)
        for sequence in batch.finished():
            batch.leave(sequence)
            state.finish(sequence, at_s)
        for sequence in emitting:
            if sequence.remaining:
                batch.join(sequence)
            else:
                state.finish(sequence, at_s)

    def _close(self) -> None:
        run = self._run
        assert run is not None
        self._busy_s += run.end_s(run.done) - run.start_s
        self._run = None

    # A step begins

    def _plan(self, at_s: float) -> None:
        """Plan the steps that begin at `at_s`, or none if there is nothing to do."""
        batch = self._batch
        self._make_room(at_s)
        chunks = self._chunks(at_s)
        if not batch and not chunks:
            return
        tokens, computed, pairs = 0, 0, 0.0
        for sequence, chunk in chunks:
            tokens += chunk
            computed += sequence.computed
            pairs += chunk * (sequence.computed + chunk / 2)
        base_ms = self._profile.step_ms(
            prefill_tokens=tokens,
            prefill_pairs=pairs,
            decoding=len(batch),
            context_tokens=batch.context_tokens,
        )
        growth_ms = self._profile.dc_ms_per_token * len(batch)
        scale = self._s_per_ms
        steps = self._steps_alike(chunks)
        self._run = Run(
            at_s,
            base_ms * scale,
            growth_ms * scale,
            steps,
            batch.ticks,
            chunks,
            tokens=tokens + len(batch),
            running=len(batch) + len(chunks),
            context_tokens=batch.context_tokens + computed,
        )
        self._grow(self._run, 1)

    def _steps_alike(self, chunks: list[tuple[Sequence, int]]) -> int:
        """How many steps can pass before anything but the context changes."""
        batch = self._batch
        if chunks or batch.fresh:
            return 1
        finish = batch.steps_to_finish()
        available = self._state.cache.available
        if batch.pages_between(batch.ticks + 1, batch.ticks + finish) <= available:
            return finish
        return batch.steps_within(available)

    def _make_room(self, at_s: float) -> None:
        """Preempt until the next step finds its pages."""
        state, batch = self._state, self._batch
        while batch.pages_at(batch.ticks + 1) > state.cache.available:
            sequence = state.newest()
            self.remove(sequence)
            state.requeue(sequence, at_s)

    def _chunks(self, at_s: float) -> list[tuple[Sequence, int]]:
        """Share the budget of one step among prompts, admitting new ones while some is left."""
        state, batch = self._state, self._batch
        budget = state.limits.step_tokens_max - len(batch)
        chunks: list[tuple[Sequence, int]] = []
        for sequence in state.prefilling.values():
            if not budget:
                break
            budget = self._chunk(sequence, budget, chunks)
        while budget:
            admitted = state.admit(at_s, batch.pages_at(batch.ticks + 1))
            if admitted is None:
                break
            if admitted.kv_arrives:
                batch.join(admitted)
                budget -= 1
            else:
                budget = self._chunk(admitted, budget, chunks)
        return chunks

    @staticmethod
    def _chunk(sequence: Sequence, budget: int, chunks: list[tuple[Sequence, int]]) -> int:
        """Give the prompt what it can use; what is left of the budget."""
        tokens = min(sequence.to_prefill, budget)
        chunks.append((sequence, tokens))
        return budget - tokens

    def _grow(self, run: Run, through: int) -> None:
        """Take the pages for the steps of the run up to `through`, each at the step's beginning."""
        batch, cache = self._batch, self._state.cache
        last = run.first_tick + through
        first, batch.grown = batch.grown + 1, max(batch.grown, last)
        pages = batch.pages_between(first, last)
        if pages <= cache.empty:
            cache.private += pages
            return
        # Something must be forgotten: at the exact steps, so that others hear of it in time.
        for tick in range(first, last + 1):
            if removed := cache.grow(batch.pages_at(tick)):
                self._state.removed(removed, run.end_s(tick - run.first_tick - 1))
