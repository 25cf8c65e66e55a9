"""The agent's shell: messages to the core, what it wants to the engine, tokens to the gateways."""

import asyncio
from typing import Any, Final, assert_never

from bus import codec, subjects
from bus.bus import Received, Subscription
from bus.errors import AskTimedOut, NoResponders, NotConnected
from bus.subjects import ANY
from components.domain.outcomes import Ask, Count, Record, Send
from components.host.host import Host
from components.worker.about import about
from components.worker.controls import Controls
from components.worker.core import HandoffMessage, Outcomes, WorkerCore
from components.worker.elsewhere import EngineElsewhere
from components.worker.engine import Engine, EngineEvent, EngineRefused, Job
from components.worker.engines import make_engine
from components.worker.frames import GATEWAYS_MAX, Began, Frames
from components.worker.load_reports import LoadReports
from components.worker.outcomes import (
    Abort,
    BeginStream,
    DropStream,
    FailStream,
    KvHere,
    OpenStream,
    ReleaseKv,
    SendKv,
    StopSending,
    Submit,
    WorkerOutcome,
)
from components.worker.settings import WorkerSettings
from schemas.attempt import CancelAttempt, ResumeStreams, ResumeStreamsReply, RunAttempt
from schemas.body import FetchBody, FetchBodyReply
from schemas.engine import ControlEngine
from schemas.engines import DescribeEngine, DescribeEngineReply
from schemas.fleet import HeartbeatSent, ShowModel, ShowModelReply
from schemas.frames import Entry
from schemas.handoff import (
    ConsumeHandoff,
    GrantHandoff,
    OfferHandoff,
    ReadyHandoff,
    ReleaseHandoff,
    RenewHandoff,
)

#: All workers of a model answer for its card; one of them does.
SHOW_MODEL_QUEUE: Final = "show_model"
HANDOFF_MESSAGES: Final[tuple[type[HandoffMessage], ...]] = (
    OfferHandoff,
    GrantHandoff,
    RenewHandoff,
    ReadyHandoff,
    ConsumeHandoff,
    ReleaseHandoff,
)


class Worker:
    """One worker process. ``engine`` is made from the settings unless given."""

    def __init__(self, host: Host, settings: WorkerSettings, engine: Engine | None = None) -> None:
        self._host = host
        self._settings = settings
        self._engine = engine or make_engine(host, settings)
        self._elsewhere = self._engine if isinstance(self._engine, EngineElsewhere) else None
        self._core: WorkerCore | None = None
        self._frame_subjects: dict[str, str] = {}
        self._frames = Frames(
            host.epoch,
            self._send_frame,
            lambda flush: asyncio.get_running_loop().call_soon(flush),
            streams_max=settings.streams_max,
            kept_bytes_max=settings.kept_bytes_max,
            kept_s=settings.kept_s,
            now_s=host.clock.now_s(),
        )
        self._load = LoadReports(host.clock, settings.load_interval_ms / 1e3, self._report_load)
        self._subscriptions: list[Subscription] = []
        self._idle = asyncio.Event()
        self._controls = Controls(host, self._engine, self._do, self.until_idle)

    # Its life

    async def start(self) -> None:
        await self._engine.start(self._on_engine)
        core = WorkerCore(
            self._host.instance, self._host.epoch, self._settings, self._engine.capabilities
        )
        self._core = core
        await self._subscribe()
        self._host.bus.on_reconnect(self._on_reconnect)
        self._host.tasks.every("worker tick", self._settings.tick_ms / 1e3, self._on_tick)
        self._load.now()

    async def _subscribe(self) -> None:
        bus, me = self._host.bus, self._host.instance
        self._subscriptions += [
            await bus.subscribe(subjects.heartbeat_sent(ANY, ANY), HeartbeatSent, self._on_beat),
            *[
                await bus.subscribe(subjects.function_of(kind)(me), kind, self._on_handoff)
                for kind in HANDOFF_MESSAGES
            ],
            await bus.subscribe(subjects.cancel_attempt(me), CancelAttempt, self._on_cancel),
            await bus.subscribe(subjects.resume_streams(me), ResumeStreams, self._on_resume),
            await bus.subscribe(
                subjects.show_model(self._settings.model),
                ShowModel,
                self._on_show_model,
                queue=SHOW_MODEL_QUEUE,
            ),
            await bus.subscribe(subjects.describe_engine(me), DescribeEngine, self._on_describe),
            await bus.subscribe(subjects.control_engine(me), ControlEngine, self._on_control),
            await bus.subscribe(subjects.run_attempt(me), RunAttempt, self._on_run),
        ]

    async def drain(self, deadline_s: float) -> None:
        core = self._running_core
        core.drain()
        self._load.now()
        if not await self.until_idle(deadline_s):
            self._host.log.warning("drain: %d attempts left", len(core.running))

    async def until_idle(self, deadline_s: float) -> bool:
        """Wait for what is here to end; False when it has not in time."""
        core = self._running_core
        try:
            async with asyncio.timeout(deadline_s):
                while not core.is_idle:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()
        if self._core is not None:
            self._frames.flush()
            self._do(self._core.end(self._now_s))
            self._core = None
        self._load.stop()
        await self._engine.stop()

    def heartbeat(self) -> dict[str, object]:
        return {
            "role": self._core.posture.role if self._core else self._settings.role,
            "model": self._settings.model,
            "shard": self._settings.shard_name,
            "watermark": self._engine.watermark if self._core else 0,
            "running": self._engine.running if self._core else 0,
            **(self._elsewhere.heartbeat() if self._core and self._elsewhere else {}),
        }

    # Messages in

    def _on_run(self, received: Received[RunAttempt]) -> None:
        core = self._running_core
        if received.message.phase == "decode":
            self._do(core.on_room(self._engine.free_pages, self._now_s))
        self._do(core.on_run(received.message, self._now_s))

    def _on_cancel(self, received: Received[CancelAttempt]) -> None:
        self._do(self._running_core.on_cancel(received.message, self._now_s))

    def _on_handoff(self, received: Received[Any]) -> None:
        message: HandoffMessage = received.message
        if message.sender != received.source:
            self._host.counters.add("handoff_ignored_total")
            return
        self._do(self._running_core.on_handoff(message, received.epoch, self._now_s))

    def _on_beat(self, received: Received[HeartbeatSent]) -> None:
        if self._elsewhere is not None:
            self._elsewhere.on_heartbeat(received.message)
        self._do(self._running_core.on_heartbeat(received.message, self._now_s))

    def _on_resume(self, received: Received[ResumeStreams]) -> None:
        positions, gateway = received.message.positions, received.source
        resumed = self._frames.resume(positions, gateway)
        for key in resumed.rehomed:
            self._running_core.on_rehomed(key, gateway, self._now_s)
        self._host.counters.add("resumes_answered_total")
        reply = ResumeStreamsReply(
            entries=codec.pack(resumed.entries), unknown=resumed.unknown, more=resumed.more
        )
        self._host.bus.respond(received, reply)

    def _on_show_model(self, received: Received[ShowModel]) -> None:
        self._host.bus.respond(received, ShowModelReply(card=self._engine.model_card()))

    def _on_describe(self, received: Received[DescribeEngine]) -> None:
        reply = DescribeEngineReply(about=about(self._settings, self._engine))
        self._host.bus.respond(received, reply)

    def _on_control(self, received: Received[ControlEngine]) -> None:
        _ = self._host.tasks.spawn("control the engine", self._control(received))

    async def _control(self, received: Received[ControlEngine]) -> None:
        reply = await self._controls.fulfil(received.message, self._running_core)
        self._load.now()
        self._host.bus.respond(received, reply)

    def _on_reconnect(self) -> None:
        if self._core is not None:
            self._core.on_reconnect(self._now_s)
            self._load.changed()

    def _on_tick(self) -> None:
        core, now_s = self._core, self._now_s
        if core is None:
            return
        self._frames.on_tick(now_s)
        self._do(core.on_room(self._engine.free_pages, now_s))
        self._do(core.on_tick(now_s))
        self._load.on_tick()

    # The engine

    def _on_engine(self, entries: list[Entry], events: list[EngineEvent]) -> None:
        """The sink: once per engine step."""
        core = self._core
        if core is None:
            return
        now_s = self._now_s
        for notable in self._frames.add(entries):
            if isinstance(notable, Began):
                self._do(core.on_began(notable.key, now_s))
            else:
                ended = core.on_choice_ended(notable.key, notable.finish, notable.ids, now_s)
                self._do(ended)
        for event in events:
            self._do(core.on_engine(event, now_s))
        self._load.changed()

    def _submit(self, job: Job) -> None:
        core = self._running_core
        try:
            self._engine.submit(job)
        except EngineRefused as refused:
            self._do(core.on_refused(job.key, refused.nack, self._now_s))
        else:
            self._do(core.on_submitted(job.key, self._now_s))

    # What the core wants

    def _do(self, outcomes: Outcomes) -> None:
        if not outcomes:
            return
        for outcome in outcomes:
            self._do_one(outcome)
        self._load.changed()
        if self._core is not None and self._core.is_idle:
            self._idle.set()

    def _do_one(self, outcome: WorkerOutcome) -> None:  # noqa: C901, PLR0912  (a table)
        engine, frames = self._engine, self._frames
        match outcome:
            case Send():
                subject = subjects.subject_of(outcome.message, outcome.to)
                self._host.bus.publish(subject, outcome.message, trace=outcome.trace)
            case Ask():
                _ = self._host.tasks.spawn("fetch a body", self._fetch(outcome))
            case Record():
                self._host.recorder.record(
                    outcome.request_id,
                    outcome.step,
                    outcome.attempt,
                    trace=outcome.trace,
                    detail=outcome.detail,
                )
            case Count():
                self._host.counters.add(outcome.name, outcome.by)
            case Submit():
                self._submit(outcome.job)
            case Abort():
                engine.abort(outcome.key)
            case KvHere():
                engine.kv_arrived(outcome.key)
            case SendKv():
                engine.send_kv(outcome.key, outcome.peer)
            case StopSending():
                engine.stop_sending(outcome.key)
            case ReleaseKv():
                engine.release(outcome.key)
            case OpenStream():
                frames.open(outcome.key, outcome.gateway)
            case BeginStream():
                frames.begin(outcome.key, outcome.starts)
            case DropStream():
                frames.drop(outcome.key)
            case FailStream():
                frames.fail(outcome.key, outcome.reason)
            case _:
                assert_never(outcome)

    async def _fetch(self, ask: Ask) -> None:
        """Get a body from its gateway, or None when it does not answer in time."""
        assert isinstance(ask.message, FetchBody)
        key = (ask.message.request_id, ask.message.attempt)
        timeout_s = self._settings.body_timeout_ms / 1e3
        body = None
        for _ in range(self._settings.body_tries):
            try:
                subject = subjects.subject_of(ask.message, ask.to)
                reply = await self._host.bus.ask(
                    subject, ask.message, FetchBodyReply, timeout_s=timeout_s, trace=ask.trace
                )
                body = reply.body
                break
            except NoResponders:
                await self._host.clock.sleep(timeout_s)  # it may be reconnecting
            except (AskTimedOut, NotConnected):
                pass
        if self._core is not None:
            self._do(self._core.on_body(key, body, self._now_s))

    # Out

    def _send_frame(self, gateway: str, payload: bytes) -> None:
        subject = self._frame_subjects.get(gateway)
        if subject is None:
            if len(self._frame_subjects) >= GATEWAYS_MAX:
                self._frame_subjects.clear()
            subject = subjects.frames(gateway, self._host.instance)
            self._frame_subjects[gateway] = subject
        self._host.bus.publish_frame(subject, payload)

    def _report_load(self) -> None:
        core = self._core
        if core is None:
            return
        load = self._engine.load()
        report = core.load_report(load, self._host.clock.wall_ms())
        self._host.counters["external_hit_tokens"] = load.external_hit_tokens
        self._host.counters["leases"] = report.leases
        self._host.counters["attempts"] = len(core.running)
        self._host.counters["kept_bytes"] = self._frames.kept_bytes
        subject = subjects.engine_load_reported(self._host.instance)
        self._host.bus.publish(subject, report)

    @property
    def _now_s(self) -> float:
        return self._host.clock.now_s()

    @property
    def _running_core(self) -> WorkerCore:
        assert self._core is not None, "no message is subscribed to before the core is there"
        return self._core
