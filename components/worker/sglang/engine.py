"""SGLang servers that prefill and decode apart, as one ``Engine`` that does both.

How to think about it. A job is one request to a pair of servers (``exchange.py``), and a task that
follows it. As long as no token has come, a try that fails is repeated with another pair and other
rooms; after that the job is lost, and goes on elsewhere from what was emitted. Chunks are turned
into entries within the read that brought them; what came in one turn of the loop leaves together.

The servers themselves, their health and figures: ``servers.py``. One that is found dead loses its
jobs at once.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from components.domain.pages import PAGE_TOKENS, pages_for
from components.host.clock import Clock
from components.host.tasks import Tasks
from components.worker.continuing import emitted_of, end_of
from components.worker.engine import (
    Capabilities,
    EngineLoad,
    EngineRefused,
    Job,
    JobFailed,
    JobKey,
    JobRejected,
    Sink,
)
from components.worker.outbox import Outbox
from components.worker.sglang import chat
from components.worker.sglang.bootstrap import host_of, meeting
from components.worker.sglang.card import model_card
from components.worker.sglang.exchange import How, Limits, Lost, PairCall
from components.worker.sglang.faults import LegFault
from components.worker.sglang.leg import Chunk
from components.worker.sglang.pairs import Pair, PairTable, Server, Verdict
from components.worker.sglang.policies import POLICIES
from components.worker.sglang.requests import CannotSay, Task, task_of
from components.worker.sglang.responses import BadAnswer, ChoiceReader, index_of
from components.worker.sglang.rooms import Draw, Rooms
from components.worker.sglang.servers import Servers
from components.worker.sglang.settings import SglangSettings
from schemas.fleet import ModelCard

GENERATE: Final = "/generate"
#: Weight of the newest interval in the time that a token takes.
NEWEST: Final = 0.1


class Count(Protocol):
    """Raises a counter by one."""

    def __call__(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class SglangModel:
    """What is served, and by whom. The three maxima count where the servers do not say."""

    name: str
    created_s: int
    prefill_urls: tuple[tuple[str, int | None], ...]
    decode_urls: tuple[str, ...]
    context_tokens_max: int
    seqs_max: int
    waiting_max: int


@dataclass(eq=False, slots=True)
class Choice:
    """One choice in flight. ``index`` is that of its next id, over all attempts."""

    number: int
    reader: ChoiceReader
    index: int
    started: bool = False
    ended: bool = False
    last_s: float = 0.0


@dataclass(eq=False, slots=True)
class Running:
    """A job. ``choices`` are in the order of their places in the batch."""

    job: Job
    task: Task
    path: str
    choices: list[Choice]
    started: bool = False
    call: PairCall | None = None
    follower: "asyncio.Task[None] | None" = None

    @property
    def open(self) -> list[Choice]:
        return [choice for choice in self.choices if not choice.ended]

    @property
    def needs_prompt(self) -> bool:
        return any(choice.reader.wants_prompt for choice in self.choices)


@dataclass(slots=True)
class _Sums:
    """What was counted since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    step_s: float = 0.0


class SglangEngine:
    """See the top of the file. ``draw(n)`` is uniform in 0 .. n - 1; ``count`` raises a counter."""

    def __init__(
        self,
        model: SglangModel,
        settings: SglangSettings,
        *,
        clock: Clock,
        count: Count,
        on_fault: Callable[[BaseException], None],
        draw: Draw = secrets.randbelow,
    ) -> None:
        self._model = model
        self._settings = settings
        self._clock = clock
        self._count = count
        self._tasks = Tasks(clock, on_fault)
        servers = [Server(url, "prefill", port) for url, port in model.prefill_urls]
        servers += [Server(url, "decode") for url in model.decode_urls]
        self.pairs = PairTable(
            servers,
            POLICIES[settings.policy](draw),
            failures_max=settings.failures_max,
            retry_after_s=settings.retry_after_s,
        )
        self.servers = Servers(self.pairs, settings, self._tasks, clock, self._on_dead)
        self._rooms = Rooms(draw)
        self._limits = Limits(
            settings.first_byte_timeout_s, settings.first_token_timeout_s, settings.prefill_drain_s
        )
        self._card: ModelCard | None = None
        self._capabilities: Capabilities | None = None
        self._sums = _Sums()
        self._serial = 0
        self._name = secrets.token_hex(4)
        self._out = Outbox()
        self._jobs: dict[JobKey, Running] = {}

    # Its life

    async def start(self, sink: Sink) -> None:
        await self.servers.start()
        # Fixed from here on, whatever servers do later.
        context = self.servers.context_tokens_max or self._model.context_tokens_max
        kv_tokens = self.servers.kv_tokens or context * self._model.seqs_max
        directory = self._settings.tokenizer_dir
        self._card = await asyncio.to_thread(
            model_card,
            self._model.name,
            self._model.created_s,
            context,
            Path(directory) if directory else None,
        )
        self._capabilities = Capabilities(
            phases=frozenset(("aggregated",)),
            context_tokens_max=context,
            kv_pages_total=max(1, kv_tokens // PAGE_TOKENS),
            kv_bytes_per_token=0,
        )
        self._out.open(sink)

    async def stop(self) -> None:
        self._out.close()
        for key in list(self._jobs):
            self.abort(key)
        await self._tasks.stop()
        self.servers.close()

    # What it is

    @property
    def capabilities(self) -> Capabilities:
        assert self._capabilities is not None, "start has not returned"
        return self._capabilities

    def model_card(self) -> ModelCard:
        assert self._card is not None, "start has not returned"
        return self._card

    @property
    def watermark(self) -> int:
        return self._sums.steps

    @property
    def running(self) -> int:
        return sum(c.started for r in self._jobs.values() for c in r.open)

    @property
    def free_pages(self) -> int:
        return max(0, self.capabilities.kv_pages_total - self._pages_used())

    def _pages_used(self) -> int:
        return sum(
            pages_for(len(r.job.prompt) + c.index) for r in self._jobs.values() for c in r.open
        )

    @property
    def _seqs_max(self) -> int:
        return self.servers.seqs_max or self._model.seqs_max

    def load(self) -> EngineLoad:
        sums, seqs_max = self._sums, self._seqs_max
        sequences = sum(len(r.open) for r in self._jobs.values())
        running = self.running
        total = self.capabilities.kv_pages_total
        return EngineLoad(
            running=running,
            waiting=sequences - running,
            queued_tokens=sum(
                len(r.job.prompt) for r in self._jobs.values() for c in r.open if not c.started
            ),
            kv_pages_used=min(self._pages_used(), total),
            kv_pages_total=total,
            seqs_max=seqs_max,
            watermark=sums.steps,
            prefix_hit_tokens=sums.hit_tokens,
            prompt_tokens=sums.prompt_tokens,
            predicted_step_ms=sums.step_s * 1e3,
            capacity_tokens_per_s=seqs_max / sums.step_s if sums.step_s else 0.0,
        )

    # Jobs

    def submit(self, job: Job) -> None:
        assert job.key not in self._jobs, "one key is in use once"
        if job.phase != "aggregated":
            raise EngineRefused("unsupported", f"the servers do both halves, not {job.phase}")
        room = self.capabilities.context_tokens_max - len(job.prompt)
        if room < 1:
            raise EngineRefused("too_long", f"{len(job.prompt)} prompt tokens")
        limit = min(job.sampling.max_tokens, room)
        end_ids = self.model_card().eos_token_ids
        finished = [
            (n, end)
            for n in job.open_choices
            if (end := end_of(job.sampling, emitted_of(job, n), limit, end_ids))
        ]
        numbers = [n for n in job.open_choices if n not in dict(finished)]
        self._refuse_when_full(len(numbers))
        if numbers:
            self._enter(job, numbers, room)
        for number, end in finished:  # complete from the start
            index = len(emitted_of(job, number))
            self._out.write((*job.key, number, index, [], "", None, [*end, 0]))

    def _refuse_when_full(self, sequences: int) -> None:
        here = sum(len(r.open) for r in self._jobs.values())
        if sequences and here + sequences > self._seqs_max + self._model.waiting_max:
            raise EngineRefused("full", f"{here} sequences")
        if not self.pairs.has_pair(self._now_s):
            raise EngineRefused("full", "no prefill or no decode server takes jobs")

    def _enter(self, job: Job, numbers: list[int], room: int) -> None:
        as_text = not self._settings.tokenizer_dir
        as_chat = as_text and bool(job.sampling.chat)
        try:
            task = self._task(job, numbers, room, as_text=as_text, as_chat=as_chat)
        except CannotSay as error:
            raise EngineRefused("unsupported", str(error)) from error
        choices = [self._choice(job, n, as_text=as_text, as_chat=as_chat) for n in numbers]
        path = chat.PATH if as_chat else GENERATE
        running = self._jobs[job.key] = Running(job, task, path, choices)
        running.follower = self._tasks.spawn("follow a job", self._follow(running))

    def _task(
        self, job: Job, numbers: list[int], room: int, *, as_text: bool, as_chat: bool
    ) -> Task:
        rids = [self._rid(job, number) for number in numbers]
        stream = self._settings.stream
        if as_chat:
            return chat.chat_task(job, numbers, rids, model=self._model.name, stream=stream)
        return task_of(job, numbers, rids, room_tokens=room, as_text=as_text, stream=stream)

    def _choice(self, job: Job, number: int, *, as_text: bool, as_chat: bool) -> Choice:
        index = len(emitted_of(job, number))
        reader = ChoiceReader(
            job.sampling,
            text_is_delta=True if as_chat else self.servers.text_is_delta,
            with_prompt=not index,
            opaque=as_text,
            end_ids=self.model_card().eos_token_ids,
        )
        return Choice(number, reader, index)

    def _rid(self, job: Job, number: int) -> str:
        """SGLang aborts every request whose name *begins* with the one given: none begins so."""
        self._serial += 1
        serial = self._serial & 0xFFFF_FFFF
        return f"{self._name}{serial:08x}-{job.request_id}-{job.attempt}-{number}"

    # A job on its way

    async def _follow(self, running: Running) -> None:
        """All tries of one job, to its end."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                lost = await self._try_all(running)
        except TimeoutError:
            self._fail(running, f"not done in {self._settings.request_timeout_s:g} s")
            return
        if lost is None:
            return
        if lost.fault.is_request and not running.started:
            self._leave(running)
            self._out.report(JobRejected(running.job.key, lost.fault.param))
        else:
            self._fail(running, lost.detail)

    async def _try_all(self, running: Running) -> Lost | None:
        """None when every choice has ended, else what the last try was lost to."""
        tried: list[Server] = []
        lost: Lost | None = None
        for number in range(self._settings.tries):
            pair = self.pairs.take(len(running.choices), self._now_s, tried)
            if pair is None:
                break
            if number:
                self._count("pairs_retried_total")
            lost = await self._try(running, pair)
            if lost is None:
                return None
            self._count(f"pair_{lost.server.side}_{lost.fault.kind}_total")
            if running.started or not lost.fault.may_retry:
                return lost
            tried.append(lost.server)
        return lost or Lost(self.pairs.servers[0], LegFault("connect", "no server takes jobs"))

    async def _try(self, running: Running, pair: Pair) -> Lost | None:
        sequences, tries_rooms = len(running.choices), self._rooms.take(len(running.choices))
        settled = 0

        def on_settled(server: Server, verdict: Verdict) -> None:
            nonlocal settled
            settled += 1
            self.pairs.settle(server, sequences, verdict, self._now_s)
            if settled == 2:
                self._rooms.give_back(tries_rooms)

        call = PairCall(
            pair,
            self.servers.origins,
            How(
                self._limits,
                stream=self._settings.stream,
                needs_prompt=running.needs_prompt,
                as_generated=chat.as_generated if running.path == chat.PATH else None,
            ),
            on_chunk=lambda chunk: self._on_chunk(running, pair, chunk),
            on_settled=on_settled,
            on_dropped=lambda server: self.servers.abort(server, running.task.rids),
        )
        running.call = call
        body = self._body(running.task, pair, tries_rooms)
        lost = await call.run(running.path, body, {"x-request-id": running.job.request_id})
        if lost is None and running.open and self._is_here(running):
            lost = Lost(pair.decode, LegFault("cut", "a choice has not ended"))
        if lost is None:
            _ = self._tasks.spawn("drain prefill", self._drain(call))
        return lost

    def _body(self, task: Task, pair: Pair, rooms: tuple[int, ...]) -> bytes:
        host = host_of(pair.prefill.url, brackets=self._settings.ipv6_brackets)
        return task.body(meeting(host, pair.prefill.bootstrap_port, rooms, batch=task.is_batch))

    async def _drain(self, call: PairCall) -> None:
        """Prefill's answer is read to its end; what becomes of it is only counted."""
        await call.drained()
        if (fault := call.prefill_fault) is not None:
            self._count(f"pair_late_prefill_{fault.kind}_total")

    def _is_here(self, running: Running) -> bool:
        return self._jobs.get(running.job.key) is running

    # What comes out

    def _on_chunk(self, running: Running, pair: Pair, chunk: Chunk) -> None:
        if not self._is_here(running):
            return
        place = index_of(chunk)
        if place >= len(running.choices):
            raise BadAnswer("an index beyond the batch")
        choice = running.choices[place]
        if choice.ended:
            return
        piece = choice.reader.take(chunk)
        self._sums.steps += 1
        if piece.ids:
            self._on_time(choice, len(piece.ids))
            choice.started = running.started = True
        if not (piece.ids or piece.text or piece.finish):
            return
        end = None
        if piece.finish is not None:
            end = [*piece.finish, piece.cached_tokens]
            self._sums.prompt_tokens += piece.prompt_tokens
            self._sums.hit_tokens += piece.cached_tokens
        first_index = choice.index
        choice.index += len(piece.ids)
        key, number = running.job.key, choice.number
        self._out.write((*key, number, first_index, piece.ids, piece.text, piece.extra, end))
        if end is not None:
            choice.ended = True
            if not running.open:
                del self._jobs[key]

    def _on_time(self, choice: Choice, ids: int) -> None:
        """What a token takes: a mean in which old ones fade."""
        now_s, before_s = self._now_s, choice.last_s
        choice.last_s = now_s
        if choice.started:
            step_s, sums = (now_s - before_s) / ids, self._sums
            sums.step_s += (NEWEST if sums.step_s else 1.0) * (step_s - sums.step_s)

    def _fail(self, running: Running, detail: str) -> None:
        if self._is_here(running):
            self._leave(running)
            self._out.report(JobFailed(running.job.key, detail))

    def _leave(self, running: Running) -> None:
        """It is nobody's any more; what nobody has seen of it is not said."""
        key = running.job.key
        self._jobs.pop(key, None)
        self._out.forget(key)

    # An end before the end

    def abort(self, key: JobKey) -> None:
        running = self._jobs.get(key)
        if running is None:
            return
        self._leave(running)
        if running.follower is not None:
            running.follower.cancel()  # which drops both halves

    # KV that comes and goes: between the servers, and none of ours

    def kv_arrived(self, key: JobKey) -> None:
        """The servers move KV by themselves."""

    def send_kv(self, key: JobKey, peer: str) -> None:
        """The servers move KV by themselves."""

    def stop_sending(self, key: JobKey) -> None:
        """The servers move KV by themselves."""

    def release(self, key: JobKey) -> None:
        self.abort(key)

    # What operators ask for

    async def pause(self, *, keep: bool) -> None:
        """The servers are not ours to stop."""
        raise EngineRefused("unsupported", "SGLang servers are paused at the servers")

    async def resume(self) -> None:
        """The servers are not ours to stop."""
        raise EngineRefused("unsupported", "SGLang servers are resumed at the servers")

    async def sleep(self, level: int) -> None:
        """The servers are not ours to stop."""
        raise EngineRefused("unsupported", "SGLang servers are put to sleep at the servers")

    async def wake(self) -> None:
        """The servers are not ours to stop."""
        raise EngineRefused("unsupported", "SGLang servers are woken at the servers")

    async def reset_prefix_cache(self) -> bool:
        return await self.servers.flush_caches()

    def _on_dead(self, server: Server) -> None:
        """Its jobs would wait for the last of all limits."""
        self._count("servers_lost_total")
        for running in list(self._jobs.values()):
            call = running.call
            if call is not None and server in {call.pair.prefill, call.pair.decode}:
                call.lose(server, LegFault("unhealthy", "it is found dead"))

    @property
    def _now_s(self) -> float:
        return self._clock.now_s()
