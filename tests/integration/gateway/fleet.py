"""The rest of the fleet, scripted: one bus member that plays scheduler, router and all workers.

Workers tell stories (``components.domain.story``), so a test can say what a client must get. Each
thing that a fleet may do wrong is a method or a field here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from bus import codec, subjects
from bus.bus import Received
from bus.memory_bus import MemoryBus, MemoryHub
from components.domain.bodies import Body, decode_body
from components.domain.story import Story
from components.domain.words import BEGIN_ID, model_card, vocabulary
from components.gateway.service import Gateway
from components.gateway.settings import GatewaySettings
from schemas.attempt import CancelAttempt, ResumeStreams, ResumeStreamsReply
from schemas.body import FetchBody, FetchBodyReply
from schemas.codes import RefusalCode
from schemas.fleet import HeartbeatSent, ShowModel, ShowModelReply
from schemas.frames import Entry
from schemas.request import (
    CancelRequest,
    RequestCard,
    RequestDispatched,
    RequestQueued,
    RequestRefused,
    ScheduleRequest,
)
from tests.support.host import HostInTest, connected_host

MODEL = "sim/words"
EPOCH = 1_795_000_000_000
GATEWAY = "gateway-0"
CONTEXT = 32_768

FAST: dict[str, Any] = {
    "silent_after_s": 0.6,
    "deaf_after_s": 0.4,
    "submit_retry_s": 0.3,
    "probe_s": 0.5,
}


async def until(condition: Callable[[], Any], what: str = "", timeout_s: float = 5.0) -> None:
    """Wait for ``condition``; fail when it does not come true in time."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not condition():
        assert loop.time() < deadline_s, f"not within {timeout_s} s: {what or condition}"
        await asyncio.sleep(0.005)


@dataclass
class Attempt:
    """One attempt at one worker, with all it has said."""

    card: RequestCard
    worker: str
    body: Body
    entries: list[Entry] = field(default_factory=list)
    cancelled: bool = False


class Fleet:
    """See the top of the file. ``hold`` keeps attempts from their first token, ``itl_s`` paces."""

    def __init__(self, hub: MemoryHub) -> None:
        self.bus = MemoryBus(hub, source="fleet", epoch=EPOCH)
        self.beats: dict[str, HeartbeatSent] = {}
        self.attempts: list[Attempt] = []
        self.scheduled: list[ScheduleRequest] = []
        self.cancelled_requests: list[str] = []
        self.cancelled_attempts: list[tuple[str, str, int]] = []
        self.itl_s = 0.0
        self.hold = asyncio.Event()
        self.hold.set()
        self.answers_schedule = True
        self.refuse_with: RefusalCode | None = None
        #: Entries for which this says True are lost on their way.
        self.loses: Callable[[Entry], bool] = lambda _: False
        #: Changes what workers send.
        self.garble: Callable[[Entry], Any] = lambda entry: entry
        self.frozen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0

    # Who is there.

    def beat(self, component: str, instance: str, **changes: Any) -> None:
        known = self.beats.get(instance)
        fields: dict[str, Any] = {
            "component": component,
            "instance": instance,
            "process_epoch": EPOCH,
            "state": "ready",
            "since_ms": EPOCH,
            "pid": 1,
            "host": "here",
        }
        if component == "worker":
            fields |= {"role": "aggregated", "model": MODEL, "shard": MODEL}
        if component == "router":
            fields |= {"owns": (MODEL,)}
        heartbeat = HeartbeatSent(**(fields | (dict(known) if known else {}) | changes))
        if heartbeat.state == "stopped":
            self.beats.pop(instance, None)
        else:
            self.beats[instance] = heartbeat
        self.bus.publish(subjects.heartbeat_sent(component, instance), heartbeat)

    def silence(self, instance: str) -> None:
        """SIGSTOP: no heartbeat and no token any more, until ``revive``."""
        self.frozen.add(instance)

    def kill(self, instance: str) -> None:
        """SIGKILL: silent for ever; a later life has another epoch."""
        self.silence(instance)
        self.beats.pop(instance, None)

    def revive(self, instance: str) -> None:
        self.frozen.discard(instance)

    @property
    def workers(self) -> list[str]:
        return [
            b.instance
            for b in self.beats.values()
            if b.component == "worker" and b.instance not in self.frozen
        ]

    async def start(self, *workers: str) -> None:
        bus = self.bus
        await bus.connect()
        any_name = subjects.ANY
        await bus.subscribe(subjects.schedule_request(any_name), ScheduleRequest, self._on_schedule)
        await bus.subscribe(
            subjects.cancel_request(any_name), CancelRequest, self._on_cancel_request
        )
        await bus.subscribe(
            subjects.cancel_attempt(any_name), CancelAttempt, self._on_cancel_attempt
        )
        await bus.subscribe(subjects.resume_streams(any_name), ResumeStreams, self._on_resume)
        await bus.subscribe(subjects.show_model(MODEL), ShowModel, self._on_show_model)
        self.beat("scheduler", "scheduler-0", owns=(MODEL,))
        self.beat("router", "router-0")
        for worker in workers or ("decode-0", "decode-1"):
            self.beat("worker", worker)
        self._spawn(self._heartbeats())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _heartbeats(self) -> None:
        while True:
            for instance, beat in list(self.beats.items()):
                if instance not in self.frozen:
                    self.beat(beat.component, instance)
            await asyncio.sleep(0.05)

    # What it does.

    def _on_show_model(self, question: Received[ShowModel]) -> None:
        card = model_card(MODEL, created_s=1_795_000_000, context_tokens_max=CONTEXT)
        self.bus.respond(question, ShowModelReply(card=card))

    def _on_schedule(self, received: Received[ScheduleRequest]) -> None:
        message = received.message
        self.scheduled.append(message)
        if not self.answers_schedule:
            return
        card = message.card
        if self.refuse_with is not None:
            refused = RequestRefused(
                request_id=card.request_id,
                attempt=card.attempt,
                code=self.refuse_with,
                detail="secret detail 0xdeadbeef",
                retry_after_ms=2500 if self.refuse_with == "queue_full" else 0,
            )
            self.bus.publish(subjects.request_refused(card.gateway), refused)
            return
        if any(
            a.card.request_id == card.request_id and a.card.attempt >= card.attempt
            for a in self.attempts
        ):
            return
        queued = RequestQueued(
            request_id=card.request_id, attempt=card.attempt, scheduler="scheduler-0", place=0
        )
        self.bus.publish(subjects.request_queued(card.gateway), queued)
        self._spawn(self._run(message))

    async def _run(self, message: ScheduleRequest) -> None:
        card = message.card
        workers = self.workers
        self._turn += 1
        worker = workers[self._turn % len(workers)]
        packed = message.body
        if packed is None:
            reply = await self.bus.ask(
                subjects.fetch_body(card.gateway),
                FetchBody(request_id=card.request_id, attempt=card.attempt),
                FetchBodyReply,
                timeout_s=2.0,
            )
            packed = reply.body
            assert packed is not None
        attempt = Attempt(card, worker, decode_body(packed))
        self.attempts.append(attempt)
        dispatched = RequestDispatched(
            request_id=card.request_id,
            attempt=card.attempt,
            worker=worker,
            worker_epoch=EPOCH,
            prefill_worker=None,
            router="router-0",
            router_epoch=1,
        )
        self.bus.publish(subjects.request_dispatched(card.gateway), dispatched)
        await self.hold.wait()
        await self._tell(attempt)

    async def _tell(self, attempt: Attempt) -> None:
        """One token per open choice and step, all in one frame."""
        body, card = attempt.body, attempt.card
        stories = {}
        for choice in range(body.sampling.n):
            emitted = body.emitted.get(choice)
            if emitted is None or not emitted.finished:
                ids = emitted.token_ids if emitted else ()
                story = Story(body.prompt_token_ids, ids, body.sampling, choice)
                stories[choice] = story
        while stories and not attempt.cancelled:
            entries: list[Entry] = []
            for choice, story in list(stories.items()):
                index = story.count
                written = story.next()
                finish = [*written.finish, 0] if written.finish else None
                extra = {"logprobs": [written.logprobs]} if written.logprobs is not None else None
                entries.append(
                    (
                        card.request_id,
                        card.attempt,
                        choice,
                        index,
                        [written.token_id],
                        written.text,
                        extra,
                        finish,
                    )
                )
                if finish:
                    del stories[choice]
            attempt.entries += entries
            await until(lambda: attempt.worker not in self.frozen, timeout_s=60.0)
            self.send_frame(attempt.worker, [e for e in entries if not self.loses(e)])
            await asyncio.sleep(self.itl_s)

    def send_frame(self, worker: str, entries: list[Entry]) -> None:
        payload = codec.pack([1, EPOCH, 1, [self.garble(e) for e in entries]])
        self.bus.publish_frame(subjects.frames(GATEWAY, worker), payload)

    def _on_cancel_request(self, received: Received[CancelRequest]) -> None:
        self.cancelled_requests.append(received.message.request_id)

    def _on_cancel_attempt(self, received: Received[CancelAttempt]) -> None:
        message = received.message
        worker = received.subject.rsplit(".", 1)[1]
        self.cancelled_attempts.append((worker, message.request_id, message.attempt))
        if worker in self.frozen:
            return
        for attempt in self.attempts:
            if (
                attempt.card.request_id == message.request_id
                and attempt.card.attempt <= message.attempt
                and attempt.worker == worker
            ):
                attempt.cancelled = True

    def _on_resume(self, question: Received[ResumeStreams]) -> None:
        worker = question.subject.rsplit(".", 1)[1]
        if worker in self.frozen:
            return
        entries: list[Entry] = []
        unknown = []
        for position in question.message.positions:
            found = [
                a
                for a in self.attempts
                if (a.card.request_id, a.card.attempt, a.worker)
                == (position.request_id, position.attempt, worker)
            ]
            if not found:
                unknown.append(position)
            entries += [
                e
                for a in found
                for e in a.entries
                if e[2] == position.choice and e[3] >= position.next_index
            ]
        reply = ResumeStreamsReply(entries=codec.pack(entries), unknown=tuple(unknown))
        self.bus.respond(question, reply)


@dataclass
class Yard:
    """A gateway on a free port, and the scripted fleet around it."""

    gateway: Gateway
    host: HostInTest
    fleet: Fleet
    hub: MemoryHub
    clients: list[openai.AsyncOpenAI] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        address = str(self.gateway.heartbeat()["address"])
        name, port = address.rsplit(":", 1)
        return name, int(port)

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=10.0)

    def client(self, **options: Any) -> Any:
        """The official client; untyped, because tests pass what its types forbid."""
        client = openai.AsyncOpenAI(
            base_url=self.url + "/v1",
            api_key="none",
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
            **{"max_retries": 0, "timeout": 20.0, **options},
        )
        self.clients.append(client)
        return client

    async def ready(self) -> None:
        async with self.http() as http:
            for _ in range(400):
                if (await http.get("/ready")).status_code == 200:
                    return
                await asyncio.sleep(0.005)
        raise AssertionError("the gateway did not become ready")

    @property
    def counters(self) -> dict[str, int]:
        return self.host.counters

    def assert_idle(self) -> None:
        """Whatever a request took is given back."""
        desk = self.gateway._desk
        assert desk.core.requests == {}
        assert desk._exchanges == {}
        assert desk.core._by_worker == {}
        assert desk.pool.pending == 0
        assert self.gateway._calls._serving == {}
        assert self.gateway._calls._held_bytes == 0


@asynccontextmanager
async def running_gateway(
    *workers: str, ready: bool = True, **settings: Any
) -> AsyncIterator[Yard]:
    """A gateway over real HTTP; at the end nothing may be left of any request, nor any fault."""
    hub = MemoryHub()
    fleet = Fleet(hub)
    options = {"port": 0, "tick_ms": 20, "linger_s": 0.3, **settings}
    async with connected_host("gateway", GATEWAY, hub=hub) as host:
        gateway = Gateway(host, GatewaySettings.model_validate(options))
        await gateway.start()
        yard = Yard(gateway, host, fleet, hub)
        try:
            await fleet.start(*workers)
            if ready:
                await yard.ready()
            yield yard
            with contextlib.suppress(AssertionError):
                desk, calls = gateway._desk, gateway._calls
                await until(
                    lambda: not desk.core.requests and not desk._exchanges and not calls._serving,
                    timeout_s=1.0,
                )
            yard.assert_idle()
        finally:
            for client in yard.clients:
                await client.close()
            await gateway.stop()
            await fleet.stop()


def story_of(
    messages_or_prompt: Any, sampling: Any, choice: int = 0, *, ids: list[int] | None = None
) -> str:
    """What the simulated model answers in full."""
    from components.gateway.rendering import Model  # noqa: PLC0415

    model = Model.from_card(model_card(MODEL, created_s=1, context_tokens_max=CONTEXT))
    if ids is None and isinstance(messages_or_prompt, str):
        ids = model.text_ids(messages_or_prompt)
    elif ids is None:
        ids = model.chat_ids(messages_or_prompt)
    story = Story(ids, (), sampling, choice)
    text = ""
    while story.finish is None:
        text += story.next().text
    return text


WORD_IDS = [BEGIN_ID, *vocabulary().words[:20]]
