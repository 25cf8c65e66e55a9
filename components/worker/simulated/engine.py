"""The engine model in real time, telling stories.

The model knows when each step ends; this file wakes then, asks it what happened, and lets each
sequence that got a token write one. Time is absolute: an engine that woke late (a busy loop, a
stopped process) is told the real time, gives all tokens that fell due meanwhile, and is on time
again. With a profile that takes no time, one step follows the other, each in a turn of the event
loop of its own.

The choices of a request are sequences of their own. The first one computes the prompt; the others
begin with its first token, when the prompt's pages can be found.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from components.domain.engine_model.events import (
    Admitted,
    Finished,
    FirstToken,
    ModelEvent,
    PrefillFinished,
    StepEnded,
)
from components.domain.engine_model.model import EngineModel
from components.domain.engine_model.request import (
    EngineLimits,
    EngineModelError,
    ModelRequest,
    RequestKind,
    RequestTooLarge,
)
from components.domain.pages import PAGE_TOKENS, pages_for
from components.domain.profiles import ConstantProfile, Profile
from components.domain.words import model_card
from components.host.clock import Clock
from components.worker.engine import (
    Capabilities,
    EngineEvent,
    EngineLoad,
    EngineRefused,
    Job,
    JobFailed,
    JobKey,
    Moved,
    MoveFailed,
    Prefilled,
    Sink,
)
from components.worker.simulated.halting_clock import HaltingClock
from components.worker.simulated.link import Link
from components.worker.simulated.writing import Writing
from components.worker.step_fit import StepFit
from schemas.fleet import ModelCard
from schemas.frames import Entry

#: Timers of the event loop have a resolution of a millisecond; waiting out the rest would spin.
EARLY_S: Final = 0.0005
#: Context of each sequence for which the capacity is stated.
CAPACITY_CONTEXT_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """What the engine pretends to serve."""

    name: str
    created_s: int
    context_tokens_max: int = 32_768


@dataclass(slots=True)
class _Running:
    """A job inside the engine. ``siblings`` wait for the first token of the one before them."""

    job: Job
    parked: bool = False
    prefilled: bool = False
    writings: dict[str, Writing] = field(default_factory=dict)
    siblings: list[Writing] = field(default_factory=list)
    cached_tokens: int = 0


class SimulatedEngine:
    """An ``Engine`` without a GPU. ``on_fault`` gets what goes wrong inside a wake-up."""

    def __init__(
        self,
        model: SimulatedModel,
        profile: Profile,
        limits: EngineLimits,
        *,
        clock: Clock,
        link: Link,
        speed: float = 1.0,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._served = model
        self._model = EngineModel(profile, limits, speed=speed)
        self._capabilities = Capabilities(
            phases=frozenset(("aggregated", "prefill", "decode")),
            context_tokens_max=model.context_tokens_max,
            kv_pages_total=self._model.gauges().kv_pages_total,
            kv_bytes_per_token=profile.kv_bytes_per_token,
        )
        self._clock = HaltingClock(clock)
        self._link = link
        self._on_fault = on_fault
        self._sink: Sink | None = None
        self._jobs: dict[JobKey, _Running] = {}
        self._writings: dict[str, Writing] = {}
        self._prefills: dict[str, JobKey] = {}
        self._entries: list[Entry] = []
        self._events: list[EngineEvent] = []
        self._steps = 0
        self._fit = StepFit()
        self._wakes: asyncio.Handle | None = None
        self._wakes_at_s: float | None = None
        self._waking_s: float | None = None

    async def start(self, sink: Sink) -> None:
        self._sink = sink

    async def stop(self) -> None:
        self._sink = None
        self._link.close()
        for key in list(self._jobs):
            self.abort(key)
        self._wake_never()

    # What it is

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def watermark(self) -> int:
        return self._steps

    @property
    def running(self) -> int:
        return 0 if self._clock.is_halted else self._model.gauges().running

    @property
    def free_pages(self) -> int:
        return self._capabilities.kv_pages_total - self._model.gauges().kv_pages_used

    def model_card(self) -> ModelCard:
        return model_card(
            self._served.name,
            created_s=self._served.created_s,
            context_tokens_max=self._served.context_tokens_max,
        )

    def load(self) -> EngineLoad:
        gauges = self._model.gauges()
        siblings = sum(len(running.siblings) for running in self._jobs.values())
        return EngineLoad(
            running=gauges.running,
            waiting=gauges.waiting + siblings,
            queued_tokens=gauges.queued_tokens,
            kv_pages_used=gauges.kv_pages_used,
            kv_pages_total=gauges.kv_pages_total,
            seqs_max=self._model.limits.seqs_max,
            watermark=self._steps,
            prefix_hit_tokens=gauges.hit_tokens,
            prompt_tokens=gauges.prompt_tokens,
            predicted_step_ms=self._model.predicted_step_ms(),
            predicted_wait_ms=self._model.predicted_backlog_ms(self._clock.now_s()),
            capacity_tokens_per_s=self._capacity_tokens_per_s(),
            step_fit=self._fit.fit(),
        )

    def _capacity_tokens_per_s(self) -> float:
        """Decode tokens per second with all seats taken; 0 when steps take no time."""
        profile, seqs = self._model.profile, self._model.limits.seqs_max
        if isinstance(profile, ConstantProfile):
            step_ms = profile.itl_ms
        else:
            context_tokens = seqs * CAPACITY_CONTEXT_TOKENS
            step_ms = profile.step_ms(decoding=seqs, context_tokens=context_tokens)
        return seqs / step_ms * 1e3 * self._model.speed if step_ms else 0.0

    # Jobs

    def submit(self, job: Job) -> None:
        assert job.key not in self._jobs, "one key is in use once"
        if job.phase == "prefill":
            self._enter_prefill(job)
        else:
            self._enter_choices(job)
        self._wake_soon()

    def _enter_prefill(self, job: Job) -> None:
        model_id = _prefill_id(job.key)
        request = ModelRequest(model_id, job.kv_tokens, page_hashes=job.page_hashes, kind="prefill")
        self._enter_model(request)
        self._prefills[model_id] = job.key
        self._jobs[job.key] = _Running(job)

    def _enter_choices(self, job: Job) -> None:
        sampling = job.sampling.model_copy(update={"max_tokens": self._output_tokens_max(job)})
        writings = [Writing(job, choice, sampling) for choice in job.open_choices]
        running = _Running(job, siblings=[w for w in writings if w.story.finish is None])
        if job.kv is not None:
            running.parked = True
            running.cached_tokens = int(job.kv.params.get("cached_tokens") or 0)
        else:
            self._enter_first(running)
        # Complete from the start: the end is all that is left to say.
        self._entries += [w.end() for w in writings if w.story.finish is not None]
        if running.siblings or running.writings:
            self._jobs[job.key] = running

    def _output_tokens_max(self, job: Job) -> int:
        """What the request asks for, or what fits into context and KV cache."""
        prompt_tokens = len(job.prompt)
        room = min(
            self._served.context_tokens_max - prompt_tokens,
            self._capabilities.kv_pages_total * PAGE_TOKENS - prompt_tokens + 1,
        )
        if room < 1:
            raise EngineRefused("too_long", f"{prompt_tokens} prompt tokens")
        return min(job.sampling.max_tokens, room)

    def _enter_first(self, running: _Running) -> None:
        """The first choice goes in; the others when it has its first token."""
        if running.siblings:
            self._enter_writing(running, running.siblings[0], "aggregated")
            del running.siblings[0]

    def _enter_rest(self, running: _Running, kind: RequestKind) -> None:
        siblings, running.siblings = running.siblings, []
        for writing in siblings:
            # Beyond the prompt, what this choice has emitted is known to nobody else.
            alone = kind == "aggregated" or (writing.index and running.job.sampling.n > 1)
            self._enter_writing(running, writing, "aggregated" if alone else kind)

    def _enter_writing(self, running: _Running, writing: Writing, kind: RequestKind) -> None:
        job = running.job
        request = ModelRequest(
            writing.model_id,
            len(job.prompt) + writing.index,
            self._output_tokens_max(job) - writing.index,
            job.page_hashes,
            kind,
        )
        self._enter_model(request)
        writing.cached_tokens = running.cached_tokens
        running.writings[writing.model_id] = writing
        self._writings[writing.model_id] = writing

    def _enter_model(self, request: ModelRequest) -> None:
        try:
            self._model.submit(request, self._now_s)
        except RequestTooLarge as error:
            raise EngineRefused("too_long", str(error)) from error
        except EngineModelError as error:
            raise EngineRefused("full", str(error)) from error

    def kv_arrived(self, key: JobKey) -> None:
        running = self._jobs.get(key)
        if running is None or not running.parked:
            return
        running.parked = False
        self._enter_or_fail(running, "decode")
        self._wake_soon()

    def _enter_or_fail(self, running: _Running, kind: RequestKind) -> None:
        key = running.job.key
        try:
            self._enter_rest(running, kind)
        except EngineRefused as refused:
            self.abort(key)
            self._events.append(JobFailed(key, str(refused)))

    def abort(self, key: JobKey) -> None:
        running = self._jobs.pop(key, None)
        if running is None:
            return
        self._link.stop(key)
        now_s = self._now_s
        for model_id in (*running.writings, _prefill_id(key)):
            self._model.cancel(model_id, now_s)
            self._writings.pop(model_id, None)
            self._prefills.pop(model_id, None)
        # What it wrote in a step that nobody has seen yet is nobody's any more.
        self._entries = [e for e in self._entries if (e[0], e[1]) != key]
        self._wake_soon()

    # KV on its way out

    def send_kv(self, key: JobKey, peer: str) -> None:
        running = self._jobs.get(key)
        if running is not None:
            self._link.send(key, peer, self._kv_bytes(running.job), self._sent)

    def stop_sending(self, key: JobKey) -> None:
        self._link.stop(key)

    def release(self, key: JobKey) -> None:
        self.abort(key)

    def _sent(self, key: JobKey, error: str | None) -> None:
        running = self._jobs.get(key)
        if running is None or self._sink is None:
            return
        event = MoveFailed(key, error) if error else Moved(key, self._kv_bytes(running.job))
        self._sink([], [event])

    def _kv_bytes(self, job: Job) -> int:
        return job.kv_tokens * self._model.profile.kv_bytes_per_token

    # What operators ask for

    async def pause(self, *, keep: bool) -> None:
        self._halt()
        if not keep:
            self._lose(key for key, running in self._jobs.items() if not running.prefilled)

    async def resume(self) -> None:
        self._clock.go_on()
        self._wake_soon()

    async def sleep(self, level: int) -> None:
        self._halt()
        self._lose(self._jobs)
        self._model.forget_cached_pages(self._now_s)

    async def wake(self) -> None:
        await self.resume()

    async def reset_prefix_cache(self) -> bool:
        return self._model.forget_cached_pages(self._now_s)

    def _halt(self) -> None:
        self._clock.halt()
        self._wake_never()

    def _lose(self, keys: Iterable[JobKey]) -> None:
        lost: list[EngineEvent] = [JobFailed(key, "lost by an operator's wish") for key in keys]
        for event in lost:
            self.abort(event.key)
        if lost and self._sink is not None:
            asyncio.get_running_loop().call_soon(self._sink, [], lost)

    # Time

    def _wake_soon(self) -> None:
        self._wake_at(self._clock.now_s())

    def _wake_at(self, at_s: float) -> None:
        """Wake then, or earlier if that is planned already."""
        if self._sink is None or self._clock.is_halted:
            return
        if self._wakes_at_s is not None and self._wakes_at_s <= at_s:
            return
        self._wake_never()
        loop, delay_s = asyncio.get_running_loop(), at_s - self._clock.now_s()
        self._wakes_at_s = at_s
        if delay_s <= 0:
            self._wakes = loop.call_soon(self._wake)
        else:
            self._wakes = loop.call_later(delay_s, self._wake)

    def _wake_never(self) -> None:
        if self._wakes is not None:
            self._wakes.cancel()
        self._wakes = self._wakes_at_s = None

    def _wake(self) -> None:
        self._wakes = self._wakes_at_s = None
        sink = self._sink
        if sink is None:
            return
        try:
            self._tell(self._clock.now_s() + EARLY_S)
            entries, self._entries = self._entries, []
            events, self._events = self._events, []
            if entries or events:
                sink(entries, events)
        except Exception as error:  # noqa: BLE001  (no caller would see it: this is a timer's)
            self._on_fault(error)
            return
        next_s = self._model.next_step_at()
        if next_s is not None:
            self._wake_at(next_s)

    @property
    def _now_s(self) -> float:
        """Time for the model. It stands still while the model's events are told.

        A step that ended between two of them would be the model's secret: after the last step of
        all nothing plans a wake-up.
        """
        return self._clock.now_s() if self._waking_s is None else self._waking_s

    def _tell(self, now_s: float) -> None:
        """Tell what happened until then."""
        steps = self._steps
        self._waking_s = now_s
        try:
            for event in self._model.advance(now_s):
                self._on_event(event)
        finally:
            self._waking_s = None
        if self._steps != steps:
            self._learn()

    def _learn(self) -> None:
        """As a real engine learns: from what steps took, not from the profile that made them so."""
        step = self._model.last_step()
        if step is not None:
            self._fit.on_step(
                step.took_s * 1e3,
                tokens=step.tokens,
                running=step.running,
                context=step.context_tokens,
            )

    def _on_event(self, event: ModelEvent) -> None:
        match event:
            case StepEnded():
                self._on_step(event)
            case FirstToken():
                self._on_first_token(event.request_id)
            case Admitted():
                self._on_admitted(event.request_id, event.hit_tokens)
            case PrefillFinished():
                self._on_prefilled(event.request_id)
            case Finished():
                # A story ends by itself, at the latest at the limit that the model was given.
                assert event.request_id not in self._writings, "the model ended before the story"
            case _:
                pass  # preemptions and pages show in the load

    def _on_step(self, event: StepEnded) -> None:
        self._steps = event.step
        for model_id in event.request_ids:
            writing = self._writings.get(model_id)
            if writing is None:
                continue  # it came to its end in an earlier step of this wake-up
            entry = writing.write(event.steps)
            self._entries.append(entry)
            if entry[7] is not None:
                self._end(writing)

    def _end(self, writing: Writing) -> None:
        """The story is over: the model frees its seat and pages."""
        del self._writings[writing.model_id]
        self._model.finish(writing.model_id, self._now_s)
        key = (writing.request_id, writing.attempt)
        running = self._jobs[key]
        del running.writings[writing.model_id]
        if running.siblings:
            self._enter_or_fail(running, "aggregated")
        elif not running.writings:
            del self._jobs[key]

    def _on_first_token(self, model_id: str) -> None:
        writing = self._writings.get(model_id)
        if writing is None:
            return
        running = self._jobs[writing.request_id, writing.attempt]
        if running.siblings:
            self._enter_or_fail(running, "aggregated")

    def _on_admitted(self, model_id: str, hit_tokens: int) -> None:
        if (key := self._prefills.get(model_id)) is not None:
            self._jobs[key].cached_tokens = hit_tokens
        elif (writing := self._writings.get(model_id)) is not None:
            running = self._jobs[writing.request_id, writing.attempt]
            # The first admission counts; where P computed the prompt, its hits do.
            if running.job.kv is None and not writing.admitted:
                writing.cached_tokens = hit_tokens
            writing.admitted = True

    def _on_prefilled(self, model_id: str) -> None:
        key = self._prefills[model_id]
        running = self._jobs[key]
        running.prefilled = True
        tokens = running.job.kv_tokens
        self._events.append(
            Prefilled(
                key=key,
                tokens=tokens,
                pages=pages_for(tokens),
                bytes_total=self._kv_bytes(running.job),
                cached_tokens=running.cached_tokens,
                params={"cached_tokens": running.cached_tokens},
            )
        )


def _prefill_id(key: JobKey) -> str:
    return f"{key[0]}/{key[1]}/kv"
