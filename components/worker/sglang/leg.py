"""One half of a try: what one server answers, read as it comes.

A half ends once: well, with a fault, or dropped because nobody wants it any more.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from components.domain.sse import DONE, Events, EventTooLong
from components.worker.sglang.faults import LegFault, error_fault
from components.worker.sglang.http import Connection
from components.worker.sglang.pairs import Server
from components.worker.sglang.responses import BadAnswer, fault_in

#: An answer that is no stream, and what an error may say.
WHOLE_BYTES_MAX: Final = 256 * 1024 * 1024
ERROR_BYTES_MAX: Final = 16 * 1024

Chunk = Mapping[str, Any]


class Leg:
    """One half: reads the answer of one server. ``ended`` hears once how it ended."""

    def __init__(
        self,
        server: Server,
        connection: Connection,
        on_chunk: Callable[[Chunk], None],
        ended: Callable[["Leg", LegFault | None], None],
        *,
        stream: bool,
        as_generated: Callable[[Chunk], Chunk] | None,
    ) -> None:
        self.server = server
        self.is_over = False
        self.fault: LegFault | None = None
        self._connection = connection
        self._on_chunk = on_chunk
        self._ended = ended
        self._stream = stream
        self._as_generated = as_generated
        self._status = 0
        self._events = Events()
        self._done = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._timer: asyncio.Handle | None = None

    def send(self, request: bytes, first_byte_s: float) -> None:
        if self._stream:  # else the first byte is the last as well
            loop, late = asyncio.get_running_loop(), LegFault("timeout", "no answer has begun")
            self._timer = loop.call_later(first_byte_s, self.fail, late)
        self._connection.send(request, self)

    def fail(self, fault: LegFault) -> None:
        """Give it up because of this."""
        if not self.is_over:
            self._connection.close()
            self._over(fault)

    def drop(self) -> None:
        """Give it up without a word: nobody wants it any more."""
        self.is_over = True
        self._stop_timer()
        self._connection.close()

    def _over(self, fault: LegFault | None) -> None:
        if self.is_over:
            return
        self.is_over, self.fault = True, fault
        self._stop_timer()
        self._ended(self, fault)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # What the connection calls.

    def on_head(self, status: int) -> None:
        self._status = status
        self._stop_timer()

    def on_body(self, piece: bytes) -> None:
        if self.is_over:
            return
        if self._status != 200 or not self._stream:
            self._keep(piece)
            return
        try:
            for payload in self._events.feed(piece):
                self._on_payload(payload)
                if self.is_over:
                    return
        except (BadAnswer, EventTooLong, orjson.JSONDecodeError) as error:
            self.fail(LegFault("garbage", str(error)))

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._status != 200:
            self._pieces.append(piece if self._size <= ERROR_BYTES_MAX else b"")
        elif self._size > WHOLE_BYTES_MAX:
            self.fail(LegFault("garbage", f"more than {WHOLE_BYTES_MAX} bytes"))
        else:
            self._pieces.append(piece)

    def _on_payload(self, payload: bytes) -> None:
        if payload == DONE:
            self._done = True
        else:
            self._take(orjson.loads(payload), index=None)

    def _take(self, chunk: Any, *, index: int | None) -> None:
        """``index`` is its place in a whole answer; chunks of a stream say theirs."""
        if not isinstance(chunk, dict):
            raise BadAnswer("a chunk that is no object")
        if "error" in chunk:
            self.fail(error_fault(chunk["error"]))
            return
        if self._as_generated is not None:
            chunk = self._as_generated(chunk)
        if (fault := fault_in(chunk)) is not None:
            self.fail(fault)
        else:
            self._on_chunk(chunk if index is None else {**chunk, "index": index})

    def on_end(self, problem: str | None) -> None:
        if self.is_over:
            return
        if problem is not None:
            self._over(self._broken(problem))
        elif self._status != 200:
            self._over(LegFault("status", _error_text(b"".join(self._pieces)), self._status))
        elif self._stream:
            self._over(None if self._done else LegFault("cut", "no [DONE]"))
        else:
            self._on_whole(b"".join(self._pieces))

    def _on_whole(self, body: bytes) -> None:
        try:
            answer = orjson.loads(body)
            for index, chunk in enumerate(answer if isinstance(answer, list) else [answer]):
                self._take(chunk, index=index)
                if self.is_over:
                    return
        except (BadAnswer, orjson.JSONDecodeError) as error:
            self._over(LegFault("garbage", str(error)))
        self._over(None)

    def _broken(self, problem: str) -> LegFault:
        if self._status:
            return LegFault("cut" if self._status == 200 else "reset", problem)
        return LegFault("reset", problem, blameless=self._connection.was_idle)


def _error_text(body: bytes) -> str:
    """The message of SGLang's error body, or the body as it is."""
    try:
        return str(orjson.loads(body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:300].decode(errors="replace")
