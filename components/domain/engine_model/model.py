"""The engine model: what an LLM engine does with requests, counted in tokens, in anybody's time."""

from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from components.domain.engine_model.constant_loop import ConstantLoop
from components.domain.engine_model.events import ModelEvent
from components.domain.engine_model.request import EngineLimits, ModelRequest
from components.domain.engine_model.run import StepWork
from components.domain.engine_model.state import EngineState, Sequence
from components.domain.engine_model.step_loop import StepLoop
from components.domain.pages import PAGE_TOKENS
from components.domain.profiles import ConstantProfile, Profile


class Loop(Protocol):
    """How steps follow each other. Shares the `EngineState` with the engine model.

    A change comes as `settle`, `interrupt`, the change itself (`remove` for who stops running),
    `resume`, all with the same time.
    """

    @property
    def busy_s(self) -> float: ...
    @property
    def context_tokens(self) -> int: ...
    def next_step_at(self) -> float | None: ...
    def next_event_at(self) -> float | None: ...
    def settle(self, now_s: float, zero_time_steps: int | None) -> None: ...
    def interrupt(self, now_s: float) -> None: ...
    def remove(self, sequence: Sequence) -> None: ...
    def resume(self, now_s: float) -> None: ...
    def last_step(self) -> StepWork | None: ...
    def step_ms(self) -> float: ...
    def prefill_ms(self, prompt_tokens: int, hit_tokens: int) -> float: ...
    def backlog_ms(self, now_s: float) -> float: ...


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """One look at the engine. All but the last group are 0 when it is idle."""

    running: int
    waiting: int
    pinned: int  # finished prefills whose pages wait for `release`
    queued_tokens: int  # prompt tokens not yet computed; hits are known only on admission
    context_tokens: int  # of the decoding sequences
    kv_pages_used: int

    kv_pages_cached: int  # free, but found again by a matching prompt
    kv_pages_total: int

    steps: int  # ended since the start; the watermark
    prompt_tokens: int  # of admitted requests, `hit_tokens` of them from the prefix cache
    hit_tokens: int
    output_tokens: int
    preemptions: int
    busy_s: float


class EngineModel:
    """Continuous batching over paged KV with a prefix cache: pure, deterministic, without text.

    Every call takes the time and first lets happen what was to happen until then; a `now_s` before
    that of an earlier call counts as the latter. What happened comes out of the next `advance`, in
    order, and waits there unbounded: whoever submits also advances. Results depend on the calls
    that change something and on their times, never on how often `advance` is called between them
    (except with zero-time steps, see constant_loop.py).
    """

    def __init__(self, profile: Profile, limits: EngineLimits, *, speed: float = 1.0) -> None:
        if not (speed > 0 and isfinite(speed)):
            raise ValueError(f"speed must be positive, not {speed}")
        pages = limits.kv_pages or profile.kv_tokens // PAGE_TOKENS
        self.profile = profile
        self.limits = limits
        self.speed = speed
        self._state = EngineState(limits, pages)
        self._loop: Loop
        if isinstance(profile, ConstantProfile):
            self._loop = ConstantLoop(profile, self._state, speed)
        else:
            self._loop = StepLoop(profile, self._state, speed)

    # Requests

    def submit(self, request: ModelRequest, now_s: float) -> None:
        """Put a request in line. Raises WaitingQueueFull, RequestTooLarge or DuplicateRequest.

        An idle engine begins a step with it at once; a busy one when the step in progress ends.
        """
        now_s = self._settle(now_s)
        self._state.enqueue(request)
        self._loop.interrupt(now_s)
        self._loop.resume(now_s)

    def finish(self, request_id: str, now_s: float) -> None:
        """The caller saw a stop string or an end token: no more tokens, everything freed.

        No event follows. An unknown id, or one that has ended, changes nothing.
        """
        self._end(request_id, now_s)

    def cancel(self, request_id: str, now_s: float) -> None:
        """As `finish`, for a request that nobody wants any more, wherever it is."""
        self._end(request_id, now_s)

    def release(self, request_id: str, now_s: float) -> None:
        """Free the pages of a finished prefill; of anything else, or once more, nothing."""
        self._settle(now_s)
        if request_id in self._state.pinned:
            self._end(request_id, now_s)

    def add_page_hashes(self, request_id: str, page_hashes: tuple[int, ...]) -> None:
        """Name pages that the output has filled, so that a next turn finds them.

        They follow the hashes known so far, and are findable when the request ends or is preempted.
        Raises ValueError for more pages than the request can fill; an unknown id changes nothing.
        """
        sequence = self._state.find(request_id)
        if sequence is None:
            return
        hashes = sequence.hashes + page_hashes
        tokens = sequence.request.prompt_tokens + sequence.request.output_tokens
        if len(hashes) > tokens // PAGE_TOKENS:
            raise ValueError("more page hashes than full pages in prompt and output")
        sequence.hashes = hashes

    def forget_cached_pages(self, now_s: float) -> bool:
        """Empty the prefix cache; False, and nothing is forgotten, while a sequence holds pages."""
        now_s = self._settle(now_s)
        if self._state.cache.used:
            return False
        self._state.removed(self._state.cache.forget(), now_s)
        return True

    # Time

    def next_step_at(self) -> float | None:
        """End of the step in progress; None when nothing runs."""
        return self._loop.next_step_at()

    def next_event_at(self) -> float | None:
        """When to look again if single decode steps are of no interest; None when nothing runs.

        Nothing but `StepEnded` and evictions happens before it.
        """
        return self._loop.next_event_at()

    def advance(self, now_s: float) -> list[ModelEvent]:
        """Everything that happened until `now_s` and was not returned before, in order.

        Bounded by what happens, not by tokens: a run of decode steps is one event. Steps that take
        no time are bounded by `zero_time_steps_max`; while some remain, `next_step_at` is past.
        """
        now_s = max(now_s, self._state.clock_s)
        self._loop.settle(now_s, self.limits.zero_time_steps_max)
        events, self._state.events = self._state.events, []
        return events

    # For load reports

    def gauges(self) -> EngineGauges:
        """The engine as of the last call. Counted here, not kept up to date, so nothing drifts."""
        state, cache = self._state, self._state.cache
        return EngineGauges(
            running=len(state.running),
            waiting=len(state.waiting),
            pinned=len(state.pinned),
            queued_tokens=sum(s.to_prefill for s in state.unfinished_prompts()),
            context_tokens=self._loop.context_tokens,
            kv_pages_used=cache.used,
            kv_pages_cached=cache.cached,
            kv_pages_total=cache.pages_total,
            steps=state.steps,
            prompt_tokens=state.prompt_tokens,
            hit_tokens=state.hit_tokens,
            output_tokens=state.output_tokens,
            preemptions=state.preemptions,
            busy_s=self._loop.busy_s,
        )

    def matching_tokens(self, page_hashes: tuple[int, ...]) -> int:
        """How many leading tokens of a prompt with these pages are here now."""
        return self._state.cache.match(page_hashes, len(page_hashes)) * PAGE_TOKENS

    def predicted_prefill_ms(self, prompt_tokens: int, hit_tokens: int = 0) -> float:
        """Time from admission to the first token on an idle engine, `hit_tokens` being cached."""
        return self._loop.prefill_ms(prompt_tokens, hit_tokens)

    def predicted_backlog_ms(self, now_s: float) -> float:
        """Time until what is here now is prefilled: what a new prompt waits before its turn."""
        now_s = self._settle(now_s)
        return self._loop.backlog_ms(now_s)

    def last_step(self) -> StepWork | None:
        """What the last step was that ended; None before one did, and where there are no steps."""
        return self._loop.last_step()

    def predicted_step_ms(self) -> float:
        """Time of a decode step of the present batch; 0 when nothing decodes."""
        return self._loop.step_ms()

    def _settle(self, now_s: float) -> float:
        now_s = max(now_s, self._state.clock_s)
        self._loop.settle(now_s, None)
        return now_s

    def _end(self, request_id: str, now_s: float) -> None:
        now_s = self._settle(now_s)
        sequence = self._state.find(request_id)
        if sequence is None:
            return
        self._loop.interrupt(now_s)
        self._loop.remove(sequence)
        self._state.discard(sequence, now_s)
        self._loop.resume(now_s)
