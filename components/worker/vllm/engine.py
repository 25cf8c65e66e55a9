"""vLLM as an ``Engine``: jobs in, what each step gave out, in one call per step.

Each choice of a job is a sequence of its own in vLLM, with a task that waits for what it gives. A
step of vLLM wakes all of them in one turn of the event loop; what they write is collected and
leaves in the next.

A continuation appends what was emitted to the prompt. Its text is made here, by a detokeniser that
has read those ids (``backend.Text``).

An engine that does nothing makes no steps, so vLLM's figures stand still when the last sequence is
aborted. What is known here (which sequences there are, which pages are held) corrects them.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from components.domain.cost import step_ms
from components.domain.pages import PAGE_TOKENS, pages_for
from components.host.clock import SystemClock
from components.host.tasks import Tasks
from components.worker.engine import (
    Capabilities,
    EngineLoad,
    EngineRefused,
    Job,
    JobFailed,
    JobKey,
    JobRejected,
    KvArrived,
    KvFailed,
    Prefilled,
    Sink,
)
from components.worker.outbox import Outbox
from components.worker.vllm.backend import (
    Backend,
    BadParameter,
    BadSequence,
    EngineDied,
    Facts,
    Output,
)
from components.worker.vllm.handoff import Exchange
from components.worker.vllm.loading import in_thread
from components.worker.vllm.page_names import PagesChange
from components.worker.vllm.sequences import (
    Choice,
    Running,
    Step,
    begin,
    prefill,
    step_of,
)
from schemas.codes import Phase
from schemas.fleet import ModelCard

#: How often a silent vLLM is looked at.
WATCH_S: Final = 0.25
#: Logprobs of prompt tokens that one job may ask for: 3 MB of the 8 MB of a frame.
PROMPT_LOGPROBS_MAX: Final = 65_536


class VllmEngine:
    """See the top of the file. ``on_fault`` hears when vLLM is gone or we were wrong.

    ``on_pages`` hears what enters and leaves the prefix cache, if vLLM was asked to say so.
    """

    def __init__(
        self,
        load: Callable[[], Backend],
        exchange: Exchange,
        *,
        on_fault: Callable[[BaseException], None],
        on_pages: Callable[[PagesChange], None] = lambda _: None,
    ) -> None:
        """``load`` takes seconds to minutes and is called in a thread; raises ``CannotStart``."""
        self._load_backend = load
        self._backend_or_none: Backend | None = None
        self._exchange = exchange
        self._on_fault = on_fault
        self._on_pages = on_pages
        self._out = Outbox(self._abort_unwanted)
        self._jobs: dict[JobKey, Running] = {}
        self._unwanted: list[str] = []
        self._serial = 0
        self._paused = False
        self._stopped = False
        self._tasks = Tasks(SystemClock(), on_fault)

    # Its life

    async def start(self, sink: Sink) -> None:
        await in_thread(self._load)
        await self._backend.attach()
        await self._exchange.start(self._out.report)
        self._out.open(sink)
        _ = self._tasks.spawn("watch vLLM", self._watch())
        _ = self._tasks.spawn("tell pages", self._tell_pages())

    def _load(self) -> None:
        backend = self._load_backend()
        self._backend_or_none = backend
        if self._stopped:  # asked for while it was loading
            backend.stop()

    async def stop(self) -> None:
        self._stopped = True
        self._out.close()
        self._jobs.clear()
        await self._exchange.stop()
        await self._tasks.stop()
        if self._backend_or_none is not None:
            await in_thread(self._backend_or_none.stop)

    async def _watch(self) -> None:
        """An engine that dies with nothing to do is noticed as well."""
        while not self._backend.is_dead:  # noqa: ASYNC110  (nobody would set an event)
            await asyncio.sleep(WATCH_S)
        self._on_fault(EngineDied("vLLM's engine process has ended"))

    async def _tell_pages(self) -> None:
        async for change in self._backend.page_changes():
            self._on_pages(change)

    # What it is

    @property
    def _backend(self) -> Backend:
        assert self._backend_or_none is not None, "start has not returned"
        return self._backend_or_none

    @property
    def _facts(self) -> Facts:
        return self._backend.facts

    @property
    def capabilities(self) -> Capabilities:
        facts = self._facts
        phases: tuple[Phase, ...] = ("aggregated",)
        if facts.has_connector:
            phases = ("aggregated", "prefill", "decode")
        return Capabilities(
            phases=frozenset(phases),
            context_tokens_max=facts.context_tokens_max,
            kv_pages_total=facts.blocks * facts.block_tokens // PAGE_TOKENS,
            kv_bytes_per_token=facts.kv_bytes_per_token,
        )

    def model_card(self) -> ModelCard:
        return self._facts.card

    @property
    def watermark(self) -> int:
        return self._backend.stats.steps

    @property
    def running(self) -> int:
        if self._paused:
            return 0
        return sum(len(r.choices) for r in self._jobs.values() if not r.parked)

    @property
    def free_pages(self) -> int:
        return self.capabilities.kv_pages_total - self._pages_used()

    def _pages_used(self) -> int:
        if not any(running.choices for running in self._jobs.values()):
            return sum(running.held_pages for running in self._jobs.values())
        facts = self._facts
        blocks = math.ceil(self._backend.stats.kv_usage * facts.blocks)
        return blocks * facts.block_tokens // PAGE_TOKENS

    def load(self) -> EngineLoad:
        facts, stats = self._facts, self._backend.stats
        inside = sum(len(r.choices) for r in self._jobs.values())
        sequences = sum(r.sequences for r in self._jobs.values())
        running = min(stats.running, inside)
        queued = self._queued_tokens()
        fit, chunk = self._backend.step_fit, facts.step_tokens_max
        mean_ms = full_ms = stats.step_ms
        if fit is not None:  # else a step with a whole chunk is taken to be like any other
            context = round(stats.kv_usage * facts.blocks * facts.block_tokens)
            full_ms = step_ms(fit, tokens=chunk, running=running, context=context)
        return EngineLoad(
            running=running,
            waiting=sequences - running,
            queued_tokens=queued,
            kv_pages_used=self._pages_used(),
            kv_pages_total=self.capabilities.kv_pages_total,
            seqs_max=facts.seqs_max,
            watermark=stats.steps,
            prefix_hit_tokens=stats.prefix_hit_tokens,
            prompt_tokens=stats.prompt_tokens,
            external_hit_tokens=stats.external_hit_tokens,
            predicted_step_ms=mean_ms,
            predicted_wait_ms=math.ceil(queued / chunk) * full_ms,
            capacity_tokens_per_s=facts.seqs_max / mean_ms * 1e3 if mean_ms else 0.0,
            step_fit=fit,
        )

    def _queued_tokens(self) -> int:
        """Prompt tokens of sequences without a token; what is computed of them does not show."""
        return sum(
            len(choice.task.prompt)
            for running in self._jobs.values()
            for choice in (*running.choices.values(), *running.siblings)
            if not choice.started
        )

    # Jobs

    def submit(self, job: Job) -> None:
        assert job.key not in self._jobs, "one key is in use once"
        facts = self._facts
        if job.phase not in self.capabilities.phases:
            raise EngineRefused("unsupported", f"{job.phase} without a KV connector")
        if max(job.prompt) >= facts.vocabulary_size:
            raise EngineRefused("unsupported", "token ids outside the vocabulary")
        room = facts.context_tokens_max - len(job.prompt)
        if room < 1:
            raise EngineRefused("too_long", f"{len(job.prompt)} prompt tokens")
        if job.phase == "prefill":
            self._enter_prefill(job)
        else:
            self._enter_choices(job, room)

    def _enter_prefill(self, job: Job) -> None:
        choice = prefill(job, self._name(job, "kv"), self._exchange.prefill_params(job))
        running = self._jobs[job.key] = Running(job)
        self._enter(running, choice)

    def _enter_choices(self, job: Job, room: int) -> None:
        running = Running(job)
        try:
            _check_prompt_logprobs(job)
            reading = self._backend.reading(job)
        except BadParameter as error:
            self._out.report(JobRejected(job.key, error.param))
            return
        for number in job.open_choices:
            name = self._name(job, str(number))
            end_ids = self._facts.card.eos_token_ids
            choice, finish = begin(job, number, name, reading, room, end_ids)
            if finish is None:
                running.siblings.append(choice)
            else:  # complete from the start: the end is all that is left to say
                extra: dict[str, Any] | None = {"deltas": []} if choice.parser else None
                self._write(job.key, choice, Step([], "", None, finish, is_cut=False), extra, 0)
        if not running.siblings:
            return
        self._jobs[job.key] = running
        if job.kv is None:
            self._enter_siblings(running)
        else:
            running.parked = True
            first = running.siblings.pop(0)
            first.task = replace(first.task, kv=self._exchange.decode_params(job, job.kv))
            self._enter(running, first)

    def _name(self, job: Job, what: str) -> str:
        """A name of its own for every sequence: the same job may come again after an abort."""
        self._serial += 1
        return f"{job.request_id}/{job.attempt}/{what}/{self._serial}"

    def _enter_siblings(self, running: Running) -> None:
        siblings, running.siblings = running.siblings, []
        for choice in siblings:
            self._enter(running, choice)

    def _enter(self, running: Running, choice: Choice) -> None:
        running.choices[choice.number] = choice
        _ = self._tasks.spawn("follow a sequence", self._follow(running, choice))

    async def _follow(self, running: Running, choice: Choice) -> None:
        """Everything that vLLM says of one sequence, to its end."""
        try:
            if choice.task.constraint is not None:
                await self._backend.admit(choice.task)
                if choice.ended:  # while vLLM did not know it yet
                    return
            async for output in self._backend.generate(choice.task):
                if self._jobs.get(running.job.key) is running and not choice.ended:
                    self._take(running, choice, output)
        except BadSequence as error:
            if self._jobs.get(running.job.key) is running:
                self._refuse(running, error)
        except EngineDied:
            pass  # the watch says so, once

    # What comes out

    def _take(self, running: Running, choice: Choice, output: Output) -> None:
        choice.started = True
        key = running.job.key
        if output.finish in {"error", "abort"}:
            self._on_lost(running, output.finish)
        elif running.job.phase == "prefill":
            self._on_prefilled(running, choice, output)
        else:
            if running.parked:
                self._on_arrived(running)
            self._on_tokens(key, running, choice, output)

    def _on_lost(self, running: Running, how: str) -> None:
        """It ended inside vLLM: the KV could not be loaded, or somebody aborted it in there."""
        if running.job.kv is not None and running.parked:
            self.abort(running.job.key)
            self._out.report(KvFailed(running.job.key, how))
        else:
            self._fail(running, f"vLLM ended it: {how}")

    def _on_arrived(self, running: Running) -> None:
        """The first token proves it: the KV is here, and the other choices find it in the cache."""
        running.parked = False
        assert running.job.kv is not None
        if not self._exchange.tells_arrival:
            self._out.report(KvArrived(running.job.key, running.job.kv.bytes_total))
        self._enter_siblings(running)

    def _on_prefilled(self, running: Running, choice: Choice, output: Output) -> None:
        if output.finish is None:
            return
        job, tokens = running.job, len(choice.task.prompt)
        running.choices.clear()
        running.held_pages = pages_for(tokens)
        self._out.report(
            Prefilled(
                key=job.key,
                tokens=tokens,
                pages=running.held_pages,
                bytes_total=tokens * self._facts.kv_bytes_per_token,
                cached_tokens=output.cached_tokens,
                params=self._exchange.offer_params(job, output.kv),
            )
        )

    def _on_tokens(self, key: JobKey, running: Running, choice: Choice, output: Output) -> None:
        step = step_of(choice, output)
        if step.is_cut:  # vLLM has perhaps gone on
            self._want_no_more(choice)
        self._write(key, choice, step, _extra(choice, step, output), output.cached_tokens)
        if step.finish is not None:
            choice.ended = True
            del running.choices[choice.number]
            if not running.sequences:
                del self._jobs[key]

    def _write(
        self,
        key: JobKey,
        choice: Choice,
        step: Step,
        extra: dict[str, Any] | None,
        cached_tokens: int,
    ) -> None:
        if not step.ids and not step.text and step.finish is None:
            return
        first_index = choice.index
        choice.index += len(step.ids)
        end = None if step.finish is None else [*step.finish, cached_tokens]
        self._out.write((*key, choice.number, first_index, step.ids, step.text, extra, end))

    def _refuse(self, running: Running, error: BadSequence) -> None:
        if isinstance(error, BadParameter):
            self.abort(running.job.key)
            self._out.report(JobRejected(running.job.key, error.param))
        else:
            self._fail(running, str(error))

    def _fail(self, running: Running, detail: str) -> None:
        self.abort(running.job.key)
        self._out.report(JobFailed(running.job.key, detail))

    # An end before the end

    def abort(self, key: JobKey) -> None:
        running = self._jobs.pop(key, None)
        if running is None:
            return
        for choice in running.choices.values():
            self._want_no_more(choice)
        self._out.forget(key)
        if running.job.phase == "prefill":
            # Even while it is computed: vLLM may have ended it, and hold its pages, unheard so far.
            self._exchange.release(key)

    def _want_no_more(self, choice: Choice) -> None:
        """Tell vLLM in the next turn, with all others: by then it knows the sequence."""
        choice.ended = True
        self._unwanted.append(choice.task.name)
        self._out.soon()

    def _abort_unwanted(self) -> None:
        if unwanted := self._unwanted:
            self._unwanted = []
            _ = self._tasks.spawn("abort", self._backend.abort(unwanted))

    # KV that comes and goes

    def kv_arrived(self, key: JobKey) -> None:
        """Nothing to do: vLLM's connectors pull."""

    def send_kv(self, key: JobKey, peer: str) -> None:
        if key in self._jobs:
            self._exchange.send_kv(key, peer)

    def stop_sending(self, key: JobKey) -> None:
        if key in self._jobs:
            self._exchange.stop_sending(key)

    def release(self, key: JobKey) -> None:
        self.abort(key)

    # Control

    async def pause(self, *, keep: bool = True) -> None:
        """Make no more steps until ``resume``; what runs is frozen, or (not ``keep``) lost."""
        await self._backend.pause(keep=keep)
        self._paused = True

    async def resume(self) -> None:
        """Go on after ``pause``."""
        await self._backend.resume()
        self._paused = False

    async def sleep(self, level: int = 1) -> None:
        """Give the GPU's memory back; what runs is lost. 1 keeps the weights on the host."""
        await self._backend.sleep(level)
        self._paused = True

    async def wake(self) -> None:
        """Undo ``sleep``."""
        await self._backend.wake()
        self._paused = False

    async def reset_prefix_cache(self) -> bool:
        """Forget cached pages; False when some are in use."""
        return await self._backend.reset_prefix_cache()


def _check_prompt_logprobs(job: Job) -> None:
    """Raises ``BadParameter`` for more than frames have room for."""
    sampling = job.sampling
    if sampling.prompt_logprobs is None:
        return
    if len(job.prompt) * (1 + sampling.prompt_logprobs) * sampling.n > PROMPT_LOGPROBS_MAX:
        raise BadParameter("prompt_logprobs", f"more than {PROMPT_LOGPROBS_MAX} figures")


def _extra(choice: Choice, step: Step, output: Output) -> dict[str, Any] | None:
    """The entry's ``extra``; nothing, in most of them."""
    extra: dict[str, Any] = {}
    if output.logprobs is not None and step.ids:
        extra["logprobs"] = list(output.logprobs[: len(step.ids)])
    if output.prompt_logprobs is not None and choice.index == 0:
        extra["prompt_logprobs"] = list(output.prompt_logprobs)
    if step.deltas is not None:
        extra["deltas"] = step.deltas
    return extra or None
