"""One keep-alive HTTP/1.1 connection that streams completions, at a few microseconds per event.

httptools cuts the HTTP, ``sse`` the events, orjson the JSON; nothing is awaited between the socket
and the record, because on a small machine the generator shares the cores with what it measures.
"""

import asyncio
import time
from typing import Any, Final, cast

import httptools
import orjson

from components.bench.records import Record
from components.domain.sse import Events, EventTooLong

ERROR_BODY_BYTES_MAX: Final = 64 * 1024
EVENT_BYTES_MAX: Final = 8 * 1024 * 1024
clock_s = time.perf_counter


class Exchange:
    """One request and what comes back, written into its record; ``ended`` is set when it is over.

    Times in the record count from ``start_s``. Error codes: ``http_<status>``, ``connection_lost``,
    ``bad_http``, ``bad_stream``, ``cut_stream`` (no ``[DONE]``), ``timeout``, and ``stream_<code>``
    for an error event inside the stream.
    """

    __slots__ = ("_body", "_done", "_events", "_start_s", "answered", "ended", "record")

    def __init__(self, record: Record, start_s: float) -> None:
        self.record = record
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered = False
        self._start_s = start_s
        self._events = Events(EVENT_BYTES_MAX)
        self._body = b""
        self._done = False

    def now_s(self) -> float:
        return clock_s() - self._start_s

    def on_body(self, status: int, piece: bytes, now_s: float) -> None:
        if status != 200:
            self._body = (self._body + piece)[:ERROR_BODY_BYTES_MAX]
            return
        try:
            for payload in self._events.feed(piece):
                self._on_event(payload, now_s - self._start_s)
        except (EventTooLong, ValueError, KeyError, TypeError, AttributeError) as error:
            self.fail("bad_stream", repr(error))

    def on_complete(self, status: int) -> None:
        if status != 200:
            self.fail(f"http_{status}", error_text(self._body))
        elif not self._done:
            self.fail("cut_stream")
        else:
            self._end()

    def fail(self, code: str, text: str = "") -> None:
        """End with an error, unless it has ended already."""
        if not self.ended.done() and self.record.error is None:
            self.record.error, self.record.error_text = code, text[:300]
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.record.done_s = self.now_s()
            self.ended.set_result(None)

    def _on_event(self, payload: bytes, now_s: float) -> None:
        if payload == b"[DONE]":
            self._done = True
            return
        event: dict[str, Any] = orjson.loads(payload)
        record = self.record
        if error := event.get("error"):
            record.error = f"stream_{error.get('code') or error.get('type') or 'error'}"
            record.error_text = str(error.get("message", ""))[:300]
            return
        for choice in event.get("choices", ()):
            delta = choice.get("delta")
            if text := (delta.get("content") if delta is not None else choice.get("text")):
                record.on_text(text, now_s)
        if usage := event.get("usage"):
            record.output_tokens = usage["completion_tokens"]
            record.prompt_tokens_seen = usage["prompt_tokens"]


def error_text(body: bytes) -> str:
    """The message of an OpenAI-shaped error, or the body as it is."""
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


class Connection(asyncio.Protocol):
    """A connection with at most one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser: Any = None
        self._read_s = 0.0
        self.exchanges = 0

    @property
    def usable(self) -> bool:
        """May another request be sent on it?"""
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and self._exchange is None
        )

    def send(self, request: bytes, exchange: Exchange) -> None:
        """Send a whole request; its answer goes into ``exchange``."""
        assert self.usable, "one exchange at a time"
        assert self._transport is not None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self.exchanges += 1
        exchange.record.sent_s = exchange.now_s()
        self._transport.write(request)

    def close(self) -> None:
        """Close now; an exchange that is under way fails."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._read_s = clock_s()
        if self._exchange is None:
            self.close()  # nobody asked
            return
        self._exchange.answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish("bad_http", repr(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish("connection_lost", repr(exc) if exc else "")

    # What httptools calls.

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.on_body(self._parser.get_status_code(), body, self._read_s)

    def on_message_complete(self) -> None:
        status: int = self._parser.get_status_code()
        if status < 200:
            return  # 100 Continue: the answer is still to come
        exchange, self._exchange = self._exchange, None
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        if exchange is not None:
            exchange.on_complete(status)

    def _finish(self, code: str, text: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.fail(code, text)
