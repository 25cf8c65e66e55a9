"""HTTP/1.1 on one connection: uvicorn's protocol with our bounds and our words.

Whatever is refused before anybody has looked at what the request says (a head that is too large or
takes too long, a body over the limit, bytes that are no HTTP) is answered here, in OpenAI's shape,
and the connection is closed. A refused client is often still sending; closing on it would destroy
the answer before it is read. So what it sends is thrown away for a moment first.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from components.gateway.errors import TIMEOUT, ApiError, overloaded, too_large
from components.gateway.settings import GatewaySettings

#: The ASGI extension that gives the `components.gateway.writers.Connection` of a request.
CONNECTION: Final = "switchyard.connection"


class GatewayProtocol(HttpToolsProtocol):
    """See the top of the file. One request at a time is in its head; others may wait behind it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: GatewaySettings,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._refused = False
        self._refusal: ApiError | None = None
        self._discarded = 0
        self._in_head = False
        self._head_bytes = 0
        self._head_fields = 0
        #: Bytes of a head that spans several reads, counted per read.
        self._head_read = 0
        self._body_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        #: Of the answer that is being written; requests behind it wait.
        self.pause_changed: Callable[[bool], None] | None = None

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._settings.connections_max:
            self._refuse(overloaded("many connections are open"))
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        was_in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # nothing to upgrade to: the request itself is served
        except httptools.HttpParserError:
            self._refuse(self._refusal or _malformed())
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._in_head:
            # One field may fill many reads before the parser hands it over.
            self._head_read += len(data) if was_in_head else 0
            if self._head_read > self._settings.head_bytes_max:
                self._refuse(_head_too_large())
            elif self._timer is None:
                self._expect_head()

    def shutdown(self) -> None:
        """The server stops: finish what was begun, but wait for nobody who was refused."""
        if self._refused:
            self.transport.abort()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.pause_changed is not None:
            self.pause_changed(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.pause_changed is not None:
            self.pause_changed(False)

    # The head.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._head_fields = self._head_read = self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._settings.url_bytes_max:
            self._give_up(
                ApiError(HTTPStatus.REQUEST_URI_TOO_LONG, "uri_too_long", "The URL is too long")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        self._head_fields += 1
        settings = self._settings
        if (
            self._head_bytes > settings.head_bytes_max
            or self._head_fields > settings.head_fields_max
        ):
            self._give_up(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        for name, value in self.headers:
            if name == b"content-length" and int(value) > self._settings.body_bytes_max:
                self._give_up(too_large(self._settings.body_bytes_max))
        super().on_headers_complete()
        extensions = {CONNECTION: AnswerConnection(self, self.cycle)}
        cast("dict[str, Any]", self.scope)["extensions"] = extensions

    # The body.

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._settings.body_bytes_max:
            self._give_up(too_large(self._settings.body_bytes_max))
        super().on_body(body)

    # Refusals.

    def send_400_response(self, msg: str) -> None:
        """Refuse as uvicorn would, but say why in JSON."""
        self._refuse(self._refusal or _malformed())

    def _give_up(self, refusal: ApiError) -> None:
        """From within the parser: leave it, ``data_received`` answers."""
        self._refusal = refusal
        raise _GivenUp

    def _refuse(self, error: ApiError) -> None:
        self._refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        if cycle is not None and not cycle.response_complete:
            # The application hears that its client left; it must not answer after us.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.abort()  # bytes of another answer are on their way
                return
        self.flow.resume_reading()
        self.transport.write(_rendered(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(self._settings.linger_s, self.transport.abort)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self._settings.linger_bytes_max:
            self.transport.abort()

    # Time.

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self._settings.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._timer = None
        if self._in_head:
            message = f"The request head did not arrive within {self._settings.head_timeout_s:g} s"
            self._refuse(ApiError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", message, TIMEOUT))
        elif self.cycle is None:
            self.transport.close()  # it connected and said nothing

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class AnswerConnection:
    """One answer's hold on its connection (``writers.Connection``).

    It frames like uvicorn's own ``send``, which has written the head and will write the end.
    """

    def __init__(self, protocol: GatewayProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    @property
    def write_paused(self) -> bool:
        return self._protocol.flow.write_paused

    def write_body(self, data: bytes) -> None:
        cycle = self._cycle
        if not cycle.disconnected:
            framed = b"%x\r\n%b\r\n" % (len(data), data) if cycle.chunked_encoding else data
            cycle.transport.write(framed)

    def abort(self) -> None:
        self._cycle.transport.abort()

    def watch_pauses(self, changed: Callable[[bool], None] | None) -> None:
        self._protocol.pause_changed = changed


class _GivenUp(Exception):
    """Ends the parser's work on this connection; never leaves it."""


def _malformed() -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, "invalid_http", "This is no valid HTTP/1.1 request")


def _head_too_large() -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "headers_too_large",
        "The request has too many or too large header fields",
    )


def _rendered(error: ApiError) -> bytes:
    status = HTTPStatus(error.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in error.headers]
    lines += [b"content-length: %d" % len(error.body), b"connection: close", b"", error.body]
    return b"\r\n".join(lines)
