"""Where HTTP and the core meet: takes requests in, does what the core says, feeds the answers."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, assert_never

import msgspec

from bus import codec, subjects
from bus.bus import Received
from bus.errors import BusError, MessageTooLarge
from bus.names import decode_name
from components.domain.liveness import PeerTable
from components.domain.outcomes import Answer, Ask, Count, Record, Send
from components.domain.pages import tenant_salt
from components.gateway.core import GatewayCore
from components.gateway.errors import overloaded, shutting_down
from components.gateway.exchange import Exchange
from components.gateway.models import Models
from components.gateway.pool import Pool
from components.gateway.readiness import Readiness, readiness
from components.gateway.request import Deliver, End, GatewayOutcome, NewRequest
from components.gateway.settings import GatewaySettings
from components.gateway.submit import Origin
from components.gateway.tenants import Tenants
from components.host.host import Host
from schemas.attempt import ResumeStreams, ResumeStreamsReply, StreamPosition
from schemas.body import FetchBody, FetchBodyReply
from schemas.codes import RefusalCode
from schemas.fleet import HeartbeatSent
from schemas.frames import Entry
from schemas.message import Message

#: Frame subjects whose worker's name was decoded already.
SUBJECTS_MAX: Final = 4096
#: Tenants whose salt was computed already.
TENANTS_MAX: Final = 4096


class Desk:
    """The core of one gateway and the HTTP answers that wait for it. Lives on one loop."""

    def __init__(self, host: Host, settings: GatewaySettings, secret: bytes) -> None:
        self.host = host
        self.settings = settings
        self.core = GatewayCore(settings)
        self.pool = Pool(settings.render_threads, settings.render_queue_max)
        self.models = Models(host, self.pool, settings.models_max)
        self.tenants = Tenants(host, settings)
        #: Bridges, who are asked about engines outside, and auditors of the history.
        self.others = PeerTable()
        self._secret = secret
        self._salts: dict[str, int] = {}
        self.draining = False
        self._open = True
        self._idle = asyncio.Event()
        self._idle.set()
        self._exchanges: dict[str, Exchange] = {}
        self._workers: dict[str, str] = {}

    @property
    def history(self) -> str:
        """Is it kept? ``unknown`` while nobody audits it. Requests go on whatever it is."""
        states = {auditor.state for auditor in self.others.of("replay")}
        if not states:
            return "unknown"
        return "degraded" if "degraded" in states else "ok"

    @property
    def readiness(self) -> Readiness:
        names = (m.card.model for m in self.models)
        connected = self.host.bus.connected
        return readiness(self.core, names, connected=connected, draining=self.draining)

    # From HTTP, and from clients on the bus.

    def origin(self, tenant: str, trace: str | None, arrived_s: float, budget_s: float) -> Origin:
        """Where a call of this tenant comes from."""
        salt = self._salts.get(tenant)
        if salt is None:
            if len(self._salts) >= TENANTS_MAX:
                self._salts.clear()
            salt = self._salts[tenant] = tenant_salt(self._secret, tenant)
        return Origin(self.host.instance, salt, trace, arrived_s, round(budget_s * 1000), tenant)

    def check_open(self, requests: int) -> None:
        """Raises ``ApiError`` when so many more cannot be taken now."""
        if not self._open:
            raise shutting_down()
        if len(self.core.requests) + requests > self.settings.requests_max:
            raise overloaded("many requests are running")

    def open(self, exchange: Exchange, requests: Sequence[NewRequest]) -> None:
        """Take in all requests of one HTTP answer."""
        self.check_open(len(requests))
        now_s = self.host.clock.now_s()
        for new in requests:
            request, outcomes = self.core.accept(new, now_s)
            exchange.add(request)
            self._exchanges[request.request_id] = exchange
            self._idle.clear()
            self.perform(outcomes)

    def close(self, exchange: Exchange, reason: str) -> None:
        """The answer is over: whatever still runs for it is cancelled."""
        now_s = self.host.clock.now_s()
        for request in exchange.requests:
            self.perform(self.core.cancel(request.request_id, reason, now_s))
            self._exchanges.pop(request.request_id, None)
        if not self._exchanges:
            self._idle.set()

    def abandon(self, exchange: Exchange, reason: str = "client_gone") -> None:
        """The client left before the end."""
        self.close(exchange, reason)
        exchange.abandon()

    async def idle(self) -> None:
        """Return when nobody waits for tokens any more, or for bytes that are on their way."""
        await self._idle.wait()

    def drain_soon(self) -> None:
        """Load balancers may look elsewhere from now on."""
        self.draining = True

    def refuse_new(self) -> None:
        """Only what runs goes on."""
        self.draining, self._open = True, False

    def end_all(self, code: RefusalCode, detail: str) -> None:
        """Tell every client that still waits why it will not get the rest."""
        now_s = self.host.clock.now_s()
        for request_id in list(self.core.requests):
            self.perform(self.core.fail(request_id, code, detail, now_s))

    # From the bus.

    def on_message(self, received: Received[Any]) -> None:
        message: Message = received.message
        self.perform(self.core.on_message(message, self.host.clock.now_s()))

    def on_heartbeat(self, received: Received[HeartbeatSent]) -> None:
        self.on_message(received)
        if received.message.component == "worker":
            self.models.heard(received.message)
        elif received.message.component in {"bridge", "replay"}:
            self.others.on_heartbeat(received.message, self.host.clock.now_s())

    def on_frame(self, subject: str, payload: bytes) -> None:
        worker = self._workers.get(subject)
        if worker is None:
            if len(self._workers) >= SUBJECTS_MAX:
                self._workers.clear()
            worker = self._workers[subject] = decode_name(subject.rsplit(".", 1)[1])
        epoch, _, entries = codec.unpack_frame(payload)
        self.perform(self.core.on_frame(worker, epoch, entries, self.host.clock.now_s()))

    def on_fetch_body(self, question: Received[FetchBody]) -> None:
        request = self.core.requests.get(question.message.request_id)
        body = request.body if request else None
        reply = FetchBodyReply(request_id=question.message.request_id, body=body)
        try:
            self.host.bus.respond(question, reply)
        except MessageTooLarge:
            self.host.counters.add("bodies_too_large_total")
            self.host.bus.respond(question, reply.model_copy(update={"body": None}))

    def on_reconnect(self) -> None:
        self.others.forgive(self.host.clock.now_s())
        self.perform(self.core.on_reconnect(self.host.clock.now_s()))

    # From time.

    def on_tick(self) -> None:
        now_s = self.host.clock.now_s()
        self.others.on_tick(now_s)
        self.perform(self.core.on_tick(now_s))
        for exchange in set(self._exchanges.values()):
            if exchange.blocked_s(now_s) > self.settings.write_stall_s:
                self.host.counters.add("stalled_clients_total")
                self.abandon(exchange, "client_stalled")
                exchange.drop_connection()

    # Out.

    def perform(self, outcomes: Sequence[GatewayOutcome]) -> None:
        """Do what the core says, in its order. Nothing here waits."""
        host = self.host
        for outcome in outcomes:
            match outcome:
                case Deliver() | End():
                    self._tell(outcome)
                case Send():
                    self._publish(outcome)
                case Count():
                    host.counters.add(outcome.name, outcome.by)
                case Record():
                    _ = host.recorder.record(
                        outcome.request_id,
                        outcome.step,
                        outcome.attempt,
                        trace=outcome.trace,
                        detail=outcome.detail,
                    )
                case Ask():
                    assert isinstance(outcome.message, ResumeStreams)
                    worker = outcome.to[0]
                    _ = host.tasks.spawn(f"resume {worker}", self._resume(worker, outcome.message))
                case Answer():
                    raise AssertionError("the core answers no questions")
                case _:
                    assert_never(outcome)

    def _tell(self, outcome: Deliver | End) -> None:
        exchange = self._exchanges.get(outcome.request.request_id)
        if exchange is None:
            return
        if isinstance(outcome, Deliver):
            exchange.deliver(outcome.request)
        else:
            exchange.end(outcome)
        if exchange.error is not None:
            # What runs beside it for the same client is of no use to anybody.
            self.close(exchange, "answer_failed")

    def _publish(self, outcome: Send) -> None:
        subject = subjects.subject_of(outcome.message, outcome.to)
        try:
            self.host.bus.publish(subject, outcome.message, trace=outcome.trace)
        except MessageTooLarge:
            # Only a body can be; its worker asks for it, and INFLIGHT goes without.
            self.host.counters.add("bodies_too_large_total")

    async def _resume(self, worker: str, question: ResumeStreams) -> None:
        """Ask a worker for what was missed; the core hears the answer, or that there is none."""
        entries: list[Entry] | None = None
        unknown: Sequence[StreamPosition] = ()
        more = False
        try:
            reply = await self.host.bus.ask(
                subjects.resume_streams(worker),
                question,
                ResumeStreamsReply,
                timeout_s=self.settings.resume_timeout_s,
            )
            entries = msgspec.convert(codec.unpack(reply.entries), list[Entry])
            unknown, more = reply.unknown, reply.more
        except (BusError, msgspec.ValidationError) as error:
            self.host.log.debug("no answer from %s about its streams: %s", worker, error)
        now_s = self.host.clock.now_s()
        self.perform(self.core.on_resumed(worker, question, entries, unknown, now_s, more=more))
