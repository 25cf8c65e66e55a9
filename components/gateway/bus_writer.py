"""The way of a stream's bytes to a client on the bus: numbered JSON messages."""

import asyncio
from collections.abc import Callable

import orjson

from bus.bus import Answers
from bus.errors import MessageTooLarge
from components.gateway.errors import ApiError, invalid
from components.gateway.exchange import Exchange
from components.gateway.openai_responses import DONE


class BusWriter:
    """A `StreamWriter`. What is written within one turn of the loop leaves as one message, at its
    end: the chunks that SSE would carry, their bytes as they are.

    ``away``: is the bus gone, so that what is published would be lost?
    """

    def __init__(
        self,
        answers: Answers,
        exchange: Exchange,
        away: Callable[[], bool],
        now_s: Callable[[], float],
    ) -> None:
        self._answers = answers
        self._exchange = exchange
        self._away = away
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._events: list[bytes] = []
        self._number = 0
        self._sent_s = 0.0
        self._blocked_since_s: float | None = None
        self._leaves_soon = False
        self._ends = False
        self._over = asyncio.Event()

    @property
    def paused(self) -> bool:
        # Noted here, so that whoever was made to wait is called when the bus is back.
        if self._blocked_since_s is None and self._away():
            self._blocked_since_s = self._now_s()
        return self._blocked_since_s is not None

    @property
    def blocked_since_s(self) -> float | None:
        return self._blocked_since_s

    def begin(self) -> None:
        """The first message: what the fleet calls these requests."""
        ids = [request.request_id for request in self._exchange.requests]
        self._send(b'"requests":' + orjson.dumps(ids))

    def write(self, data: bytes) -> None:
        if data and not self._ends:
            self._events.append(data)
            self._leave_soon()

    def close(self) -> None:
        self._ends = True
        self._leave_soon()

    def abort(self) -> None:
        self._ends = True
        self._over.set()

    async def run(self) -> None:
        await self._over.wait()

    # From time.

    def unblock(self) -> bool:
        """The bus is back; returns False when nothing had to wait."""
        if self._blocked_since_s is None:
            return False
        self._blocked_since_s = None
        self._leave_soon()
        return True

    def break_silence(self, since_s: float) -> None:
        """Say that we live, and hear whether somebody listens, unless something was said lately."""
        if self._sent_s < since_s and not self._over.is_set():
            self._send(b'"chunks":[]')

    # Bytes.

    def _leave_soon(self) -> None:
        if not self._leaves_soon:
            self._leaves_soon = True
            self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._leaves_soon = False
        if self._over.is_set() or self.paused:
            return  # what is away comes back: see unblock
        events, self._events = self._events, []
        if not events and not self._ends:
            return
        try:
            self._send(b'"chunks":[%b]' % _chunks(b"".join(events)) + self._end())
        except MessageTooLarge:
            self._send(b'"chunks":[]' + _told(_too_large()))
            self._ends = True
            self._exchange.fail(_too_large())
        if self._ends:
            self._over.set()

    def _send(self, fields: bytes) -> None:
        self._answers.send(b'{"n":%d,%b}' % (self._number, fields))
        self._number += 1
        self._sent_s = self._now_s()

    def _end(self) -> bytes:
        """What makes a message the last one."""
        if not self._ends:
            return b""
        if self._exchange.error is not None:
            return _told(self._exchange.error)
        return b',"done":true,"usage":' + orjson.dumps(self._exchange.usage_shown.content)


def _chunks(events: bytes) -> bytes:
    """The data of SSE events, as they stand in an array; errors have another place here.

    JSON has no line breaks of its own, so an empty line ends an event.
    """
    found = []
    for event in events.split(b"\n\n"):
        data = event.partition(b"data: ")[2]
        if data and data != _DONE and not data.startswith(_ERROR):
            found.append(data)
    return b",".join(found)


def _told(error: ApiError) -> bytes:
    return b',"done":true,"error":' + orjson.dumps(error.content["error"])


def _too_large() -> ApiError:
    message = "A part of the answer is larger than a message may be: ask for fewer logprobs"
    return invalid(None, message, "answer_too_large")


_DONE = DONE[len("data: ") :].rstrip()
_ERROR = b'{"error":'
