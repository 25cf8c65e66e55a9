"""A server that speaks OpenAI's API as an ``Engine``.

Each open choice of a job is one streamed request with a task that reads it (``outputs.py`` makes
entries of what it reads); what the tasks write in one turn of the event loop leaves in the next, in
one call. Who wants no more closes the connection: that is how such a server learns of it.

What the server is and how it fares: ``server.py``. One that is gone loses its jobs at once.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final

from components.domain.pages import pages_for
from components.host.clock import Clock
from components.host.tasks import Tasks
from components.worker.continuing import Finish
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
    MoveFailed,
    Prefilled,
    Sink,
)
from components.worker.openai_http.answers import Piece, Reading, piece_of
from components.worker.openai_http.choices import (
    Choice,
    Running,
    Text,
    begin,
    prefill,
)
from components.worker.openai_http.faults import RequestBad, ServerFault
from components.worker.openai_http.handover import ByRequestId, Handover, Relayed, Told
from components.worker.openai_http.outputs import Outputs
from components.worker.openai_http.requests import Body, as_prefill, request_of
from components.worker.openai_http.server import OK, Server
from components.worker.openai_http.settings import OpenAISettings, ServedModel
from components.worker.openai_http.text import TextFromIds, TextFromServer
from components.worker.outbox import Outbox
from schemas.fleet import HeartbeatSent, ModelCard

#: Addresses of other workers that are kept; the oldest goes first.
PEERS_MAX: Final = 4096
Work = Callable[[], Coroutine[Any, Any, None]]


class OpenAIEngine:
    """See the top of the file. ``on_fault`` hears when we were wrong."""

    def __init__(
        self,
        model: ServedModel,
        settings: OpenAISettings,
        *,
        clock: Clock,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """Raises ``CannotStart``."""
        self._model = model
        self._settings = settings
        self._tasks = Tasks(clock, on_fault)
        self._server = Server(model, settings, clock, lambda: self._open_requests)
        by_id = settings.handover == "p2p_nccl"
        self._handover: Handover = ByRequestId(settings.kv_address) if by_id else Relayed()
        self._addresses: dict[str, str] = {}
        self._out = Outbox()
        self._outputs = Outputs(self._out, clock)
        self._jobs: dict[JobKey, Running] = {}
        self._paused = False

    # Its life

    async def start(self, sink: Sink) -> None:
        await self._server.open()
        self._outputs.as_ids = self._server.files is not None
        self._out.open(sink)
        _ = self._tasks.spawn("watch the server", self._server.watch(self._on_gone))

    async def stop(self) -> None:
        self._out.close()
        self._jobs.clear()
        await self._tasks.stop()
        await self._server.client.close()

    def _on_gone(self, detail: str) -> None:
        for running in list(self._jobs.values()):
            self._lose(running, detail)

    # What an agent elsewhere is (components/worker/elsewhere.py)

    @property
    def is_away(self) -> bool:
        return not self._server.health.is_up

    def heartbeat(self) -> dict[str, object]:
        address = self._settings.kv_address or self._model.url
        return {"address": address, **({"state": "degraded"} if self.is_away else {})}

    def on_heartbeat(self, heartbeat: HeartbeatSent) -> None:
        name, address = heartbeat.instance, heartbeat.address
        if address is None or self._settings.handover != "p2p_nccl":
            return
        if name not in self._addresses and len(self._addresses) >= PEERS_MAX:
            del self._addresses[next(iter(self._addresses))]
        self._addresses[name] = address

    # What it is

    @property
    def capabilities(self) -> Capabilities:
        return self._server.capabilities

    def model_card(self) -> ModelCard:
        return self._server.card

    @property
    def watermark(self) -> int:
        return self._outputs.tokens + self._server.health.progress

    @property
    def running(self) -> int:
        """A request that waits in the server's queue for its first token is moved on by no step."""
        return 0 if self._paused else self._started

    @property
    def _started(self) -> int:
        return sum(c.started for r in self._jobs.values() for c in r.choices.values())

    @property
    def _open_requests(self) -> int:
        return sum(len(r.choices) for r in self._jobs.values())

    @property
    def free_pages(self) -> int:
        return max(0, self.capabilities.kv_pages_total - self._pages_used())

    def _pages_used(self) -> int:
        own = sum(r.held_pages for r in self._jobs.values())
        if not (self._open_requests or any(self._server.others)):
            return own  # what was seen at the last look is free again
        own += sum(c.pages for r in self._jobs.values() for c in r.choices.values())
        return min(max(own, self._server.pages_seen), self.capabilities.kv_pages_total)

    def load(self) -> EngineLoad:
        model, health, step_ms = self._model, self._server.health, self._outputs.step_ms
        running = self._started
        inside = sum(len(r.choices) + len(r.siblings) for r in self._jobs.values())
        others_running, others_waiting = self._server.others
        queued = self._queued_tokens()
        return EngineLoad(
            running=running + others_running,
            waiting=inside - running + others_waiting,
            queued_tokens=queued,
            kv_pages_used=self._pages_used(),
            kv_pages_total=self.capabilities.kv_pages_total,
            seqs_max=model.seqs_max,
            watermark=self.watermark,
            prefix_hit_tokens=health.hit_tokens,
            prompt_tokens=health.prompt_tokens,
            predicted_step_ms=step_ms,
            predicted_wait_ms=math.ceil(queued / model.step_tokens_max) * step_ms,
            capacity_tokens_per_s=model.seqs_max / step_ms * 1e3 if step_ms else 0.0,
        )

    def _queued_tokens(self) -> int:
        return sum(
            len(choice.prompt)
            for running in self._jobs.values()
            for choice in (*running.choices.values(), *running.siblings)
            if not choice.started
        )

    # Jobs

    def submit(self, job: Job) -> None:
        assert job.key not in self._jobs, "one key is in use once"
        room = self.capabilities.context_tokens_max - len(job.prompt)
        if objection := self._objection(job):
            raise objection
        if room < 1:
            raise EngineRefused("too_long", f"{len(job.prompt)} prompt tokens")
        if job.phase == "prefill":
            self._enter_prefill(job)
        else:
            self._enter_choices(job, room)

    def _objection(self, job: Job) -> EngineRefused | None:
        if self.is_away:
            return EngineRefused("draining", "the server is gone")
        if job.phase not in self.capabilities.phases:
            return EngineRefused("unsupported", f"{job.phase} without a handover")
        wanted = len(job.open_choices) if job.phase != "prefill" else 1
        if self._open_requests + wanted > self._settings.connections_max:
            return EngineRefused("full", f"{self._open_requests} requests are open")
        begun = any(e.token_ids and not e.finished for e in job.emitted.values())
        if begun and (not self._outputs.as_ids or job.sampling.structured is not None):
            return EngineRefused("unsupported", "no server can take this up in the middle")
        return None

    def _text(self, job: Job) -> Text:
        files = self._server.files
        return TextFromServer() if files is None else TextFromIds(files, job.prompt, job.sampling)

    def _enter_prefill(self, job: Job) -> None:
        told = self._handover.prefill(job, self._addresses.get(job.peer or ""))
        choice = prefill(job, TextFromServer())
        running = self._jobs[job.key] = Running(job)
        running.choices[0] = choice
        self._follow_up(running, lambda: self._prefill(running, choice, told))
        if self._settings.handover == "p2p_nccl" and self._settings.overlap:
            self._on_prefilled(running, choice, 0, {})

    def _enter_choices(self, job: Job, room: int) -> None:
        told = Told() if job.kv is None else self._handover.decode(job, job.kv)
        running = Running(job)
        for number in job.open_choices:
            choice, finish = begin(
                job, number, self._text(job), room, self._server.card.eos_token_ids
            )
            if finish is None:
                running.siblings.append(choice)
            else:  # complete from the start: the end is all that is left to say
                self._outputs.end(job.key, choice, finish)
        if not running.siblings:
            return
        self._jobs[job.key] = running
        if job.kv is None:
            self._enter_siblings(running)
        else:
            running.parked = True
            self._enter(running, running.siblings.pop(0), told)

    def _enter_siblings(self, running: Running) -> None:
        siblings, running.siblings = running.siblings, []
        for choice in siblings:
            self._enter(running, choice, Told())

    def _enter(self, running: Running, choice: Choice, told: Told) -> None:
        running.choices[choice.number] = choice
        self._follow_up(running, lambda: self._follow(running, choice, told))

    def _follow_up(self, running: Running, work: Work) -> None:
        task = self._tasks.spawn("follow a request", self._guarded(running, work))
        running.followers.add(task)
        task.add_done_callback(running.followers.discard)

    async def _guarded(self, running: Running, work: Work) -> None:
        """Whatever goes wrong at the server is the end of this job, not of the agent."""
        try:
            await work()
        except RequestBad as bad:
            if self._is_here(running):
                self._drop(running)
                self._out.report(JobRejected(running.job.key, bad.param))
        except ServerFault as fault:
            if self._is_here(running):
                self._lose(running, str(fault))

    def _is_here(self, running: Running) -> bool:
        return self._jobs.get(running.job.key) is running

    # What comes out

    async def _prefill(self, running: Running, choice: Choice, told: Told) -> None:
        path, body = self._request(choice)
        answer = await self._server.client.answer(
            path, {**as_prefill(body), **told.body}, told.headers
        )
        cached = piece_of(answer, Reading()).cached_tokens
        if self._is_here(running):
            running.choices.clear()
            if not running.offered:
                self._on_prefilled(running, choice, cached, answer)

    def _on_prefilled(
        self, running: Running, choice: Choice, cached_tokens: int, answer: dict[str, Any]
    ) -> None:
        tokens = len(choice.prompt)
        running.offered, running.held_pages = True, pages_for(tokens)
        self._out.report(
            Prefilled(
                key=running.job.key,
                tokens=tokens,
                pages=running.held_pages,
                bytes_total=tokens * self.capabilities.kv_bytes_per_token,
                cached_tokens=cached_tokens,
                params=self._handover.offer(answer),
            )
        )

    def _request(self, choice: Choice) -> tuple[str, Body]:
        server = self._server
        return request_of(server.model, server.dialect, choice, as_ids=self._outputs.as_ids)

    async def _follow(self, running: Running, choice: Choice, told: Told) -> None:
        """Everything that the server says of one choice, to its end."""
        path, body = self._request(choice)
        body |= told.body
        reading = self._reading(choice)
        if not body["stream"]:
            answer = await self._server.client.answer(path, body, told.headers)
            self._take(running, choice, piece_of(answer, reading))
        else:
            events = self._server.client.events(path, body, told.headers)
            async with aclosing(events):
                async for event in events:
                    if not self._take(running, choice, piece_of(event, reading)):
                        break
        if self._is_here(running) and choice.number in running.choices:
            if choice.finish is None:
                raise ServerFault("the answer ended before the choice")
            self._end(running, choice, choice.finish)

    def _reading(self, choice: Choice) -> Reading:
        sampling, files = choice.sampling, self._server.files
        text_of = None if files is None else files.text_of
        prompt = None if files is None else list(choice.prompt)
        before = list(choice.emitted)
        return Reading(sampling.logprobs, sampling.prompt_logprobs, text_of, prompt, before)

    def _take(self, running: Running, choice: Choice, piece: Piece) -> bool:
        """One event; False when nothing more is wanted.

        The end waits for the usage that follows it, with the count of cached tokens.
        """
        if not self._is_here(running):
            return False
        choice.cached_tokens = max(choice.cached_tokens, piece.cached_tokens)
        if choice.finish is not None:
            return True
        if piece.finish in {"error", "abort"}:
            raise ServerFault(f"the server ended it: {piece.finish}")
        if piece.finish is None and not (piece.text or piece.token_ids or piece.delta):
            return True
        if running.parked:
            self._on_arrived(running)
        return self._outputs.take(running.job.key, choice, piece)

    def _on_arrived(self, running: Running) -> None:
        """The first token proves it: the KV is here, and the other choices find it in the cache."""
        running.parked = False
        assert running.job.kv is not None
        self._out.report(KvArrived(running.job.key, running.job.kv.bytes_total))
        self._enter_siblings(running)

    def _end(self, running: Running, choice: Choice, finish: Finish) -> None:
        self._outputs.end(running.job.key, choice, finish)
        del running.choices[choice.number]
        if not (running.choices or running.siblings):
            del self._jobs[running.job.key]

    # An end before the end

    def abort(self, key: JobKey) -> None:
        running = self._jobs.get(key)
        if running is None:
            return
        self._drop(running)
        self._out.forget(key)

    def _drop(self, running: Running) -> None:
        """Forget the job and close its connections: the server stops working on it."""
        key = running.job.key
        del self._jobs[key]
        running.choices.clear()
        running.siblings.clear()
        me = asyncio.current_task()
        for task in running.followers:
            if task is not me:
                task.cancel()

    def _lose(self, running: Running, detail: str) -> None:
        """The server gave it up, or we gave up the server."""
        key, offered, parked = running.job.key, running.offered, running.parked
        self._drop(running)
        if offered:
            self._out.report(MoveFailed(key, detail))
        elif parked:
            self._out.report(KvFailed(key, detail))
        else:
            self._out.report(JobFailed(key, detail))

    # KV that comes and goes: the servers move it by themselves

    def kv_arrived(self, key: JobKey) -> None:
        """Nothing to do: it is here when the first token comes."""

    def send_kv(self, key: JobKey, peer: str) -> None:
        """Nothing to do: the other server fetches it, or has it already."""

    def stop_sending(self, key: JobKey) -> None:
        """A server stops when the other one does."""

    def release(self, key: JobKey) -> None:
        self.abort(key)

    # Control: vLLM has these paths when it runs with VLLM_SERVER_DEV_MODE=1

    async def pause(self, *, keep: bool) -> None:
        await self._control(f"/pause?mode={'keep' if keep else 'abort'}")
        self._paused = True

    async def resume(self) -> None:
        await self._control("/resume")
        self._paused = False

    async def sleep(self, level: int) -> None:
        await self._control(f"/sleep?level={level}")
        self._on_gone("the engine was put to sleep")
        self._paused = True

    async def wake(self) -> None:
        await self._control("/wake_up")
        self._paused = False

    async def reset_prefix_cache(self) -> bool:
        await self._control("/reset_prefix_cache")
        return True

    async def _control(self, path: str) -> None:
        try:
            status, _ = await self._server.client.ask(path, post=True)
        except ServerFault as fault:
            raise EngineRefused("unsupported", str(fault)) from fault
        if status != OK:
            raise EngineRefused("unsupported", f"{path} says {status}")
