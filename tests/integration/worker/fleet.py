"""Workers on a bus, in memory or real, and one party that plays gateway and router to them."""

import zlib
from contextlib import AsyncExitStack, asynccontextmanager

from bus import codec, subjects
from bus.bus import Received
from bus.memory_bus import MemoryBus
from bus.subjects import ANY
from components.domain.bodies import Body, Emitted, encode_body
from components.domain.pages import pack_hashes, page_hashes
from components.domain.story import Story
from components.worker.service import Worker
from components.worker.settings import WorkerSettings
from schemas.attempt import (
    AttemptReported,
    CancelAttempt,
    ResumeStreams,
    ResumeStreamsReply,
    RunAttempt,
    StreamPosition,
)
from schemas.body import FetchBody, FetchBodyReply, SamplingParameters
from schemas.engine import EngineLoadReported
from schemas.examples import CARD, example
from schemas.fleet import HeartbeatSent, ShowModel, ShowModelReply
from schemas.handoff import OfferHandoff, ReadyHandoff
from tests.support.host import EPOCH, testing_host
from tests.support.nats import until

PROMPT = tuple(range(300, 350))
ROUTER = "router-0"


def story(prompt=PROMPT, choice=0, emitted=(), **sampling):
    """(ids, text, finish) that a simulated model must give."""
    parameters = SamplingParameters(**{"max_tokens": 40, "ignore_eos": True, **sampling})
    told = Story(prompt, emitted, parameters, choice)
    ids, text = [], ""
    while told.finish is None:
        written = told.next()
        ids.append(written.token_id)
        text += written.text
    return ids, text, list(told.finish)


class Fleet:
    """Everything that was heard from the workers, and ways to speak to them."""

    def __init__(self, connect, gateway, router):
        self.connect, self.gateway, self.router = connect, gateway, router
        self.workers, self.hosts = {}, {}
        self.frames, self.reports, self.loads = [], [], {}
        self.bodies = {}
        self.offers, self.readies = [], []
        self.seqs = {}

    async def listen(self):
        await self.gateway.bus.subscribe_frames(subjects.frames("gateway-0", ANY), self._on_frame)
        for bus, subject, kind, handler in (
            (self.gateway.bus, subjects.fetch_body("gateway-0"), FetchBody, self._on_fetch),
            (
                self.router.bus,
                subjects.attempt_reported(ANY, ANY),
                AttemptReported,
                self._on_report,
            ),
            (
                self.router.bus,
                subjects.engine_load_reported(ANY),
                EngineLoadReported,
                self._on_load,
            ),
        ):
            await bus.subscribe(subject, kind, handler)
        self.gateway.tasks.every("beats", 0.05, self.beat)

    async def overhear(self):
        """What workers say to each other; no bus with permissions allows that."""
        bus = self.router.bus
        for subject, kind, into in (
            (subjects.offer_handoff(ANY), OfferHandoff, self.offers),
            (subjects.ready_handoff(ANY), ReadyHandoff, self.readies),
        ):
            await bus.subscribe(subject, kind, lambda r, into=into: into.append(r.message))

    def beat(self):
        """Heartbeats of the gateway, and of the workers that have not been killed."""
        self._beat(self.gateway, "gateway", {})
        for name, host in self.hosts.items():
            self._beat(host, "worker", self.workers[name].heartbeat())

    def _beat(self, host, component, more):
        beat = example(
            HeartbeatSent,
            **{
                "component": component,
                "instance": host.instance,
                "process_epoch": host.epoch,
                "state": "ready",
                **more,
            },
        )
        host.bus.publish(subjects.heartbeat_sent(component, host.instance), beat)

    def _on_frame(self, subject: str, payload: bytes):
        epoch, seq, entries = codec.unpack_frame(payload)
        self.frames.append((subject.rsplit(".", 1)[1], epoch, seq, entries))

    def _on_report(self, received: Received[AttemptReported]):
        self.reports.append(received.message)

    def _on_load(self, received: Received[EngineLoadReported]):
        self.loads.setdefault(received.message.engine, []).append(received.message)

    def _on_fetch(self, received: Received[FetchBody]):
        body = self.bodies.get(received.message.request_id, "silence")
        if body != "silence":
            request_id = received.message.request_id
            reply = FetchBodyReply(request_id=request_id, body=body)
            self.gateway.bus.respond(received, reply)

    # What came

    def entries(self, request_id="r1", choice=0, attempt=None):
        """Entries with content, in order of arrival."""
        return [
            e
            for _, _, _, entries in self.frames
            for e in entries
            if e[0] == request_id and e[2] == choice and (e[4] or e[7]) and attempt in (None, e[1])
        ]

    def ids(self, *which, **more):
        return [i for e in self.entries(*which, **more) for i in e[4]]

    def text(self, *which, **more):
        return "".join(e[5] for e in self.entries(*which, **more))

    def finish(self, *which, **more):
        entries = self.entries(*which, **more)
        return entries[-1][7] if entries else None

    async def finished(self, request_id="r1", choice=0, **more):
        await until(lambda: self.finish(request_id, choice, **more) is not None, "a finish")
        return (
            self.ids(request_id, choice, **more),
            self.text(request_id, choice, **more),
            self.finish(request_id, choice, **more)[:2],
        )

    def states(self, request_id="r1", worker=None):
        return [
            (r.state, r.nack or r.finish)
            for r in self.reports
            if r.request_id == request_id and worker in (None, r.worker)
        ]

    def load(self, worker):
        return self.loads[worker][-1]

    async def idle(self, *workers):
        """All counters that a policy reads are zero, in the worker's own words."""

        def zero(name):
            load = self.load(name)
            return (load.running, load.waiting, load.queued_tokens, load.leases) == (
                0,
                0,
                0,
                0,
            ) and load.kv_pages_used == 0

        await until(lambda: all(map(zero, workers)), f"{workers} idle")

    # What is said

    def dispatch(
        self,
        worker,
        request_id="r1",
        attempt=1,
        phase="aggregated",
        *,
        prompt=PROMPT,
        emitted=None,
        peer=None,
        inline=True,
        card=None,
        router_epoch=1,
        worker_epoch=None,
        **sampling,
    ):
        """What a router would send; returns the body."""
        given = {c: Emitted(tuple(ids)) for c, ids in (emitted or {}).items()}
        parameters = SamplingParameters(**{"max_tokens": 40, "ignore_eos": True, **sampling})
        body = encode_body(Body(prompt, parameters, given))
        seq = self.seqs[worker] = self.seqs.get(worker, 0) + 1
        facts = {
            "request_id": request_id,
            "attempt": attempt,
            "prompt_tokens": len(prompt),
            "emitted_tokens": sum(len(e.token_ids) for e in given.values()),
            "choices": parameters.n,
            "page_hashes": pack_hashes(page_hashes(prompt, 1)),
            **(card or {}),
        }
        message = example(
            RunAttempt,
            card=CARD.model_copy(update=facts),
            phase=phase,
            worker_epoch=worker_epoch or self.hosts[worker].epoch,
            router=ROUTER,
            router_epoch=router_epoch,
            dispatch_seq=seq,
            transfer_id=f"{request_id}.{attempt}" if peer else None,
            peer=peer,
            peer_epoch=self.hosts[peer].epoch if peer else None,
            body=body if inline else None,
        )
        subject = subjects.run_attempt(worker)
        self.router.bus.publish(subject, message, trace=CARD.traceparent)
        return body

    def pair(self, prefill="prefill-0", decode="decode-0", **more):
        self.dispatch(decode, phase="decode", peer=prefill, **more)
        self.dispatch(prefill, phase="prefill", peer=decode, **more)

    def cancel(self, worker, request_id="r1", attempt=1):
        cancel = CancelAttempt(request_id=request_id, attempt=attempt)
        self.gateway.bus.publish(subjects.cancel_attempt(worker), cancel)

    async def resume(self, worker, *positions, bus=None):
        """(entries, unknown, more) from these (request id, attempt, choice, next index) on."""
        question = ResumeStreams(
            positions=tuple(
                StreamPosition(request_id=r, attempt=a, choice=c, next_index=i)
                for r, a, c, i in positions
            )
        )
        subject = subjects.resume_streams(worker)
        bus = bus or self.gateway.bus
        reply = await bus.ask(subject, question, ResumeStreamsReply, timeout_s=2)
        return codec.unpack(reply.entries), reply.unknown, reply.more

    async def card(self, model="sim/words"):
        subject, question = subjects.show_model(model), ShowModel(model=model)
        reply = await self.gateway.bus.ask(subject, question, ShowModelReply, timeout_s=2)
        return reply.card, zlib.decompress(reply.card.tokenizer_json).decode()

    def kill(self, worker):
        """The process is gone without a word."""
        self.hosts[worker].bus.cut_off = True
        del self.hosts[worker], self.workers[worker]


@asynccontextmanager
async def fleet(hub, *names, **settings):
    """A started fleet of workers on a memory bus; the role is in the name."""

    async def connect(component, instance, epoch):
        bus = MemoryBus(hub, source=instance, epoch=epoch)
        await bus.connect()
        return bus

    async with fleet_on(connect, *names, overhear=True, **settings) as made:
        yield made


@asynccontextmanager
async def fleet_on(connect, *names, overhear=False, **settings):
    """The same on any bus: ``connect(component, instance, epoch)`` gives a connected one."""
    async with AsyncExitStack() as stack:
        hosts = []
        for component in ("gateway", "router"):
            bus = await connect(component, f"{component}-0", EPOCH)
            hosts.append(testing_host(component, bus=bus))
            stack.push_async_callback(bus.close)
            stack.push_async_callback(hosts[-1].tasks.stop)
        made = Fleet(connect, *hosts)
        await made.listen()
        if overhear:
            await made.overhear()
        for number, name in enumerate(names):
            await add_worker(stack, made, name, EPOCH + number, **settings)
        await until(lambda: len(made.loads) == len(names), "the first load reports")
        yield made
        for host in made.hosts.values():
            if host.faults:
                raise host.faults[0]


async def add_worker(stack, made, name, epoch, **settings):
    host = testing_host("worker", bus=await made.connect("worker", name, epoch))
    given = {"profile": "constant", "kv_pages": 2000, **settings}
    worker = Worker(host, WorkerSettings(role=name.split("-")[0], **given))
    made.hosts[name], made.workers[name] = host, worker
    stack.push_async_callback(host.bus.close)
    stack.push_async_callback(host.tasks.stop)
    stack.push_async_callback(worker.stop)
    await worker.start()
    return worker
