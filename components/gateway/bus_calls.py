"""The two calls that produce tokens, asked over NATS: the same calls, answers and errors.

How to think about it. A call is known by the inbox that it wants its answer in; the broker has seen
to it that the tenant in the subject is the caller's own. Each message of a streamed answer names
where the server may say that nobody listens there: so a client that leaves is noticed with the next
token, as over HTTP, and one that waits in silence by an empty message every ``client_silence_s``,
which also shows it that this gateway lives. An answer in one cannot be probed so; it has
``client_whole_s``.

While the bus is away nothing is written: tokens wait, bounded, in the streams' own buffers. After a
reconnect clients get ``client_rejoin_s`` to be there again.
"""

import asyncio
import functools
import random
from dataclasses import dataclass
from http import HTTPStatus

from bus import subjects, tracing
from bus.bus import Answers, ClientCall, Received, Subscription
from bus.clients import tenant_of
from bus.errors import BusError, MessageTooLarge
from bus.subjects import ANY
from components.gateway.bus_writer import BusWriter
from components.gateway.calls import open_call
from components.gateway.desk import Desk
from components.gateway.errors import TIMEOUT, ApiError, internal, invalid, overloaded, too_large
from components.gateway.exchange import ClientGone, Exchange
from components.gateway.openai_requests import Api
from components.gateway.submit import new_name
from schemas.client import CancelGeneration, CancelGenerationReply


@dataclass(slots=True)
class _Serving:
    """One call under way."""

    call: ClientCall
    answers: Answers
    exchange: Exchange | None = None
    writer: BusWriter | None = None
    gone: bool = False


class BusCalls:
    """See the top of the file. Lives on the desk's loop."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._bus = desk.host.bus
        self._serving: dict[str, _Serving] = {}
        self._held_bytes = 0
        self._settled_s = 0.0
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        bus, desk = self._bus, self._desk
        for subject, api in _CALLS:
            on_call = functools.partial(self._on_call, api)
            self._subscriptions.append(await bus.subscribe_calls(subject, on_call, queue="gateway"))
        _ = await bus.subscribe(subjects.cancel_generation(ANY), CancelGeneration, self._on_cancel)
        bus.on_reconnect(self._on_reconnect)
        interval_s = desk.settings.client_silence_s / 4
        _ = desk.host.tasks.every("gateway.clients", interval_s, self._look)

    async def leave(self) -> None:
        """New calls go to other gateways; what runs goes on."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()

    @property
    def away(self) -> bool:
        """Would what is published now miss clients that are about to come back?"""
        return not self._bus.connected or self._desk.host.clock.now_s() < self._settled_s

    # What arrives.

    def _on_call(self, api: Api, call: ClientCall) -> None:
        counters = self._desk.host.counters
        counters.add("bus_calls_total")
        if call.reply in self._serving:
            # Told there, it would be taken for the end of the answer that is under way.
            counters.add("bus_calls_repeated_total")
            return
        try:
            answers = self._bus.answer(call, lambda: self._on_gone(call.reply))
        except BusError:  # too many wait for answers, or we are closing: nothing can be said
            counters.add("bus_calls_unanswered_total")
            return
        try:
            self._admit(call)
        except ApiError as error:
            counters.add("bus_calls_refused_total")
            answers.send(error.body)
            answers.close()
            return
        serving = _Serving(call, answers)
        self._serving[call.reply] = serving
        self._held_bytes += len(call.data)
        _ = self._desk.host.tasks.spawn(f"bus call {api}", self._serve(api, serving))

    def _admit(self, call: ClientCall) -> None:
        desk = self._desk
        desk.check_open(1)
        if len(call.data) > desk.settings.body_bytes_max:
            raise too_large(desk.settings.body_bytes_max)
        held = self._held_bytes + len(call.data)
        if (
            held > desk.settings.intake_bytes_max
            or len(self._serving) >= desk.settings.requests_max
        ):
            raise overloaded("many calls are arriving")

    def _on_cancel(self, question: Received[CancelGeneration]) -> None:
        reply = question.message.reply
        serving = self._serving.get(reply)
        if serving is None or serving.call.tenant != tenant_of(question.subject):
            return  # another gateway's, or over
        self._desk.host.counters.add("bus_calls_cancelled_total")
        self._end(serving, "cancelled")
        if question.reply:
            self._bus.respond(question, CancelGenerationReply(reply=reply))

    def _on_gone(self, reply: str) -> None:
        serving = self._serving.get(reply)
        if serving is not None and not self.away:
            self._desk.host.counters.add("bus_calls_gone_total")
            self._end(serving, "client_gone")

    def _end(self, serving: _Serving, reason: str) -> None:
        """Nothing more is said, and nothing more is computed."""
        serving.gone = True
        if serving.writer is not None:
            serving.writer.abort()
        if serving.exchange is not None:
            self._desk.abandon(serving.exchange, reason)

    # From time.

    def _on_reconnect(self) -> None:
        settings = self._desk.settings
        self._settled_s = self._desk.host.clock.now_s() + settings.client_rejoin_s

    def _look(self) -> None:
        """Break long silences; go on where the bus was away."""
        if self.away:
            return
        silent_since_s = self._desk.host.clock.now_s() - self._desk.settings.client_silence_s
        for serving in tuple(self._serving.values()):
            if serving.writer is not None and serving.exchange is not None:
                if serving.writer.unblock():
                    serving.exchange.drained()
                else:
                    serving.writer.break_silence(silent_since_s)

    # One call.

    async def _serve(self, api: Api, serving: _Serving) -> None:
        counters = self._desk.host.counters
        try:
            await self._answer(api, serving)
        except ClientGone:
            pass  # counted where it was noticed
        except ApiError as error:
            counters.add("bus_calls_refused_total")
            serving.answers.send(error.body)
        except Exception as error:
            counters.add("bus_calls_failed_total")
            self._desk.host.log.exception("a call failed: %s", type(error).__name__)
            serving.answers.send(internal().body)
        finally:
            serving.answers.close()
            del self._serving[serving.call.reply]
            if serving.exchange is not None:
                reason = "client_gone" if serving.gone else "answer_failed"
                self._desk.close(serving.exchange, reason)

    async def _answer(self, api: Api, serving: _Serving) -> None:
        desk, call = self._desk, serving.call
        sampled = random.random() < desk.host.settings.telemetry_sample_ratio
        trace = tracing.new_trace(sampled=sampled)
        arrived_s = desk.host.clock.now_s()
        with tracing.root_span(f"NATS {api}", trace) as trace_here:
            origin = desk.origin(call.tenant, trace_here, arrived_s, desk.settings.deadline_s)
            try:
                exchange, streamed = await open_call(desk, api, call.data, new_name(), origin)
            finally:
                self._held_bytes -= len(call.data)
            serving.exchange = exchange
            if serving.gone:
                raise ClientGone
            await (self._stream if streamed else self._whole)(serving, exchange)

    async def _stream(self, serving: _Serving, exchange: Exchange) -> None:
        serving.writer = writer = BusWriter(
            serving.answers, exchange, lambda: self.away, self._desk.host.clock.now_s
        )
        writer.begin()
        exchange.attach(writer)
        await writer.run()

    async def _whole(self, serving: _Serving, exchange: Exchange) -> None:
        within_s = self._desk.settings.client_whole_s
        try:
            async with asyncio.timeout(within_s):
                body = await exchange.whole()
        except TimeoutError:
            message = f"The answer was not complete within {within_s:g} s: ask for it as a stream"
            raise ApiError(
                HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded", message, TIMEOUT
            ) from None
        try:
            serving.answers.send(body)
        except MessageTooLarge:
            message = "The answer is larger than a message may be: ask for it as a stream"
            raise invalid(None, message, "answer_too_large") from None


_CALLS: tuple[tuple[str, Api], ...] = (
    (subjects.complete_chat(ANY), "chat"),
    (subjects.complete_text(ANY), "completions"),
)
