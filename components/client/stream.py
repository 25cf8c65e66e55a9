"""One streamed answer as it arrives."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from bus import subjects
from bus.bus import Asked, Bus
from components.client.errors import (
    AnswerLost,
    ClientError,
    GatewayLost,
    NobodyAnswers,
    ReaderTooSlow,
    Refused,
)
from schemas.client import CancelGeneration, Refusal

#: Messages that may wait to be read.
WAITING_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Delta:
    """What a choice has more: ``text``, and ``finish`` when it ends. ``chunk`` is OpenAI's."""

    choice: int
    text: str
    finish: str | None
    chunk: dict[str, Any]


class Stream:
    """Iterate over it once; it is asked for when that begins.

    Whoever stops before the end (``break``, ``close``, an exception) cancels the answer. ``usage``
    is known at the end, ``requests`` (what the fleet calls them) from the first delta on.
    """

    def __init__(self, bus: Bus, tenant: str, subject: str, body: bytes, silence_s: float) -> None:
        self.requests: tuple[str, ...] = ()
        self.usage: dict[str, Any] | None = None
        self._bus = bus
        self._tenant = tenant
        self._subject = subject
        self._body = body
        self._silence_s = silence_s
        self._asked: Asked | None = None
        self._waiting: deque[bytes | None] = deque()
        self._arrival = asyncio.Event()
        self._overrun = False
        self._number = 0
        self._over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        assert self._asked is None, "a stream is read once"
        self._asked = self._bus.call(self._subject, self._body, self._arrived)
        try:
            while not self._over:
                for chunk in self._chunks_of(await self._next()):
                    for choice in chunk.get("choices", ()):
                        yield _delta(choice, chunk)
        finally:
            self.close()

    async def text(self) -> str:
        """All text of the first choice, when all of it is there."""
        return "".join([delta.text async for delta in self if delta.choice == 0])

    def close(self) -> None:
        """End it, if it has not ended. Harmless twice."""
        if self._asked is None:
            self._over = True
        elif not self._over:
            self._over = True
            self._asked.close()
            cancel = CancelGeneration(reply=self._asked.address)
            self._bus.publish(subjects.cancel_generation(self._tenant), cancel)

    def _arrived(self, data: bytes | None) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._overrun = True
        else:
            self._waiting.append(data)
        self._arrival.set()

    async def _next(self) -> dict[str, Any]:
        """The next message; raises ``ClientError`` for what is none, or does not come."""
        while not self._waiting:
            self._arrival.clear()
            try:
                async with asyncio.timeout(self._silence_s):
                    await self._arrival.wait()
            except TimeoutError:
                raise GatewayLost(f"nothing heard for {self._silence_s:g} s") from None
        if self._overrun:
            raise ReaderTooSlow(f"{WAITING_MAX} messages wait")
        data = self._waiting.popleft()
        if data is None:
            self._end()
            raise NobodyAnswers(f"no gateway serves {self._subject}")
        try:
            message: dict[str, Any] = orjson.loads(data)
        except ValueError as error:
            raise AnswerLost("a message that is no JSON") from error
        return message

    def _chunks_of(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        if "n" not in message:
            self._end()
            raise refused(message)
        if message["n"] != self._number:
            raise AnswerLost(f"message {self._number} was lost")
        self._number += 1
        self.requests = tuple(message.get("requests", self.requests))
        if message.get("done"):
            self._end()
            if "error" in message:
                raise refused(message)
            self.usage = message.get("usage")
        chunks: list[dict[str, Any]] = message.get("chunks", [])
        return chunks

    def _end(self) -> None:
        self._over = True
        if self._asked is not None:
            self._asked.close()


def refused(message: dict[str, Any]) -> ClientError:
    """The error that a message tells."""
    error = message.get("error")
    if not isinstance(error, dict):
        return AnswerLost("a message that is neither an answer nor an error")
    known = {name: error.get(name) for name in ("type", "param")}
    code, text = str(error.get("code")), str(error.get("message", ""))
    return Refused(Refusal(code=code, message=text, **known))


def _delta(choice: dict[str, Any], chunk: dict[str, Any]) -> Delta:
    text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
    return Delta(choice["index"], text or "", choice.get("finish_reason"), chunk)
