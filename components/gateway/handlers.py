"""The two calls that produce tokens, as raw ASGI: per request anything, per token only bytes.

The head of a streamed answer is held back until its first token, so that whatever goes wrong before
gets a real status, and a worker that dies before it is never seen by the client.
"""

import asyncio
import random
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from bus import tracing
from components.gateway.calls import open_call
from components.gateway.desk import Desk
from components.gateway.errors import ApiError, Headers, internal
from components.gateway.exchange import ClientGone, Exchange
from components.gateway.intake import Intake, Receive
from components.gateway.openai_requests import Api
from components.gateway.openai_responses import STREAM_HEADERS
from components.gateway.protocol import CONNECTION
from components.gateway.submit import new_name
from components.gateway.writers import AsgiWriter, Connection, DirectWriter, Send, StreamWriter

Scope = MutableMapping[str, Any]

_SAFE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
#: Ids of zeros alone mean that there is none (W3C Trace Context, 3.2.2).
_NO_TRACE: Final = re.compile("-(0{32}|0{16})-")


@dataclass(frozen=True, slots=True)
class Caller:
    """What the head of a request says about who asks. ``request_id`` is theirs, if it is safe."""

    request_id: bytes | None
    trace: str | None

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> "Caller":
        found = dict(scope["headers"])
        request_id = found.get(b"x-request-id", b"")
        trace = found.get(b"traceparent", b"").decode("latin-1")
        return cls(
            request_id if _SAFE_ID.fullmatch(request_id) else None,
            trace if tracing.trace_id(trace) and not _NO_TRACE.search(trace) else None,
        )


class Answer:
    """One HTTP answer on its way out."""

    def __init__(self, scope: Scope, send: Send, request_id: bytes) -> None:
        self.send = send
        self.started = False
        self._scope = scope
        self._request_id = (b"x-request-id", request_id)

    async def begin(self, status: int, headers: Headers) -> None:
        self.started = True
        headers = [*headers, self._request_id]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def error(self, error: ApiError) -> None:
        headers = error.headers
        if error.status in {408, 413}:
            headers.append((b"connection", b"close"))  # the rest of the body was not read
        await self.whole(error.status, headers, error.body)

    def writer(self, now_s: Callable[[], float], on_drained: Callable[[], None]) -> StreamWriter:
        """The shortest way to the client that the server offers."""
        connection: Connection | None = self._scope.get("extensions", {}).get(CONNECTION)
        if connection is None:
            return AsgiWriter(self.send, now_s, on_drained)
        return DirectWriter(connection, self.send, now_s, on_drained)


class CompletionRoute:
    """``POST /v1/chat/completions`` or ``POST /v1/completions``."""

    def __init__(self, api: Api, desk: Desk, intake: Intake) -> None:
        self._api = api
        self._desk = desk
        self._intake = intake
        self._path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[api]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_s = self._desk.host.clock.now_s()
        caller, name = Caller.of(scope), new_name()
        answer = Answer(scope, send, caller.request_id or f"req-{name}".encode())
        counters = self._desk.host.counters
        counters.add("http_requests_total")
        try:
            tenant = await self._desk.tenants.of(scope)
            await self._serve(caller, tenant, name, arrived_s, receive, answer)
        except ClientGone:
            counters.add("http_clients_gone_total")
        except ApiError as error:
            counters.add("http_refused_total")
            await answer.error(error)
        except Exception as error:
            counters.add("http_errors_total")
            self._desk.host.log.exception("a request failed: %s", type(error).__name__)
            if answer.started:
                raise  # the server closes the connection: a cut answer is seen to be cut
            await answer.error(internal())

    async def _serve(
        self,
        caller: Caller,
        tenant: str,
        name: str,
        arrived_s: float,
        receive: Receive,
        answer: Answer,
    ) -> None:
        desk = self._desk
        desk.check_open(1)
        sampled = random.random() < desk.host.settings.telemetry_sample_ratio
        trace = caller.trace or tracing.new_trace(sampled=sampled)
        with tracing.root_span(f"POST {self._path}", trace) as trace_here:
            origin = desk.origin(tenant, trace_here, arrived_s, desk.settings.deadline_s)
            body = await self._intake.read(receive)
            exchange, streamed = await open_call(desk, self._api, body, name, origin)
            del body
            watch = asyncio.ensure_future(self._watch(receive, exchange))
            try:
                await (self._stream if streamed else self._whole)(exchange, answer)
            finally:
                watch.cancel()
                desk.close(exchange, "client_gone" if exchange.gone else "answer_failed")

    async def _watch(self, receive: Receive, exchange: Exchange) -> None:
        """Cancel in the turn in which the client leaves (or the answer is complete)."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._desk.abandon(exchange)

    async def _whole(self, exchange: Exchange, answer: Answer) -> None:
        body = await exchange.whole()
        await answer.whole(200, [(b"content-type", b"application/json")], body)

    async def _stream(self, exchange: Exchange, answer: Answer) -> None:
        await exchange.began()
        await answer.begin(200, [*STREAM_HEADERS])
        writer = answer.writer(self._desk.host.clock.now_s, exchange.drained)
        exchange.attach(writer)
        await writer.run()
