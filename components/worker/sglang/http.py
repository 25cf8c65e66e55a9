"""HTTP/1.1 to one server: connections that are kept, answers that are told as they come.

httptools cuts the HTTP. What a body brings is handed on within the read that brought it, because
each chunk of each stream passes here and a task switch would cost more than the rest of its way.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import httptools

from components.host.clock import Clock

#: The answers that are read as a whole.
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class CannotConnect(Exception):
    """Nobody listens there, or not within the time."""


class Answer(Protocol):
    """Who hears an answer. ``on_end`` comes once and last, unless the connection was closed by us.

    ``problem`` is None when the answer is complete, else what happened to the connection.
    """

    def on_head(self, status: int) -> None: ...
    def on_body(self, piece: bytes) -> None: ...
    def on_end(self, problem: str | None) -> None: ...


class Connection(asyncio.Protocol):
    """A connection with at most one request at a time."""

    def __init__(self, origin: "Origin") -> None:
        self._origin = origin
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._parser: Any = None
        self._requests = 0
        self.idle_since_s = 0.0

    @property
    def was_idle(self) -> bool:
        """It has served before: the server may have closed it while the request was on its way."""
        return self._requests > 1

    @property
    def usable(self) -> bool:
        transport = self._transport
        return transport is not None and not transport.is_closing() and self._answer is None

    def send(self, request: bytes, answer: Answer) -> None:
        """Send a whole request; what comes back is told to ``answer``."""
        assert self._answer is None, "one request at a time"
        self._requests += 1
        if self._transport is None or self._transport.is_closing():
            answer.on_end("the connection was closed")
            return
        self._answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def close(self) -> None:
        """Close at once, without a word to whoever waits for an answer."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def give_back(self) -> None:
        """It was not needed after all."""
        self._origin.keep(self)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"no HTTP: {error!r}")
            self.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(str(exc) if exc else "the server has closed the connection")

    # What httptools calls.

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        if status >= 200 and self._answer is not None:
            self._answer.on_head(status)

    def on_body(self, body: bytes) -> None:
        if self._answer is not None:
            self._answer.on_body(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200 or self._answer is None:
            return
        keeps = self._parser.should_keep_alive()
        self._end(None)
        if keeps:
            self._origin.keep(self)
        else:
            self.close()

    def _end(self, problem: str | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.on_end(problem)


class Origin:
    """One server. ``headers`` go with every request."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        headers: Mapping[str, str],
        connect_timeout_s: float,
        idle_max: int,
        idle_s: float,
    ) -> None:
        parts = urlsplit(url)
        self.url = url
        self._clock = clock
        self._host = parts.hostname or ""
        self._port = parts.port or DEFAULT_PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._headers = {"host": parts.netloc, "accept": "*/*", **headers}
        self._connect_timeout_s = connect_timeout_s
        self._idle_max = idle_max
        self._idle_s = idle_s
        self._idle: list[Connection] = []
        self._closed = False

    async def connect(self) -> Connection:
        """One that is kept, or a new one. Raises ``CannotConnect``."""
        fresh_s = self._clock.now_s() - self._idle_s
        while self._idle:
            kept = self._idle.pop()  # the youngest: the others may end
            if kept.usable and kept.idle_since_s >= fresh_s:
                return kept
            kept.close()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise CannotConnect(f"no connection in {self._connect_timeout_s:g} s") from None
        except OSError as error:
            raise CannotConnect(str(error) or type(error).__name__) from error
        return connection

    def keep(self, connection: Connection) -> None:
        """Its request is over, or never came."""
        if self._closed or not connection.usable or len(self._idle) >= self._idle_max:
            connection.close()
            return
        connection.idle_since_s = self._clock.now_s()
        self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle, and whatever is given back from now on."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def request(
        self, method: str, path: str, body: bytes = b"", more: Mapping[str, str] | None = None
    ) -> bytes:
        """The bytes of a request; a body is JSON."""
        headers = {**self._headers, **(more or {})}
        if body or method != "GET":
            headers |= {"content-type": "application/json", "content-length": str(len(body))}
        lines = [f"{method} {self._prefix}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body

    async def fetch(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float
    ) -> tuple[int, bytes]:
        """Status and body of a short answer. Raises ``CannotConnect`` whatever goes wrong."""
        connection = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self.connect()
                whole = _Whole()
                connection.send(self.request(method, path, body), whole)
                answer = await whole.done
                connection = None
        except TimeoutError:
            raise CannotConnect(f"no answer in {timeout_s:g} s") from None
        finally:
            if connection is not None:
                connection.close()
        return answer


class _Whole:
    """An answer that is read as a whole."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def on_head(self, status: int) -> None:
        self._status = status

    def on_body(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= ANSWER_BYTES_MAX:
            self._pieces.append(piece)

    def on_end(self, problem: str | None) -> None:
        if self.done.done():
            return
        if problem is None and self._size <= ANSWER_BYTES_MAX:
            self.done.set_result((self._status, b"".join(self._pieces)))
        else:
            self.done.set_exception(CannotConnect(problem or "the answer is too long"))
