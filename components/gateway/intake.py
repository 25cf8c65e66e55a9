"""Reading request bodies: bounded each, bounded together, bounded in time."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from components.gateway.errors import TIMEOUT, ApiError, overloaded, too_large
from components.gateway.exchange import ClientGone

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Intake:
    """All bodies that are being received; ``held_bytes`` of them are here now."""

    def __init__(self, body_bytes_max: int, total_bytes_max: int, timeout_s: float) -> None:
        self._body_bytes_max = body_bytes_max
        self._total_bytes_max = total_bytes_max
        self._timeout_s = timeout_s
        self.held_bytes = 0

    async def read(self, receive: Receive) -> bytes:
        """The body; raises ``ApiError`` (408, 413, 503) or ``ClientGone``."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(receive)
        except TimeoutError:
            message = f"The request body did not arrive within {self._timeout_s:g} s"
            raise ApiError(
                HTTPStatus.REQUEST_TIMEOUT, "request_timeout", message, TIMEOUT
            ) from None

    async def _read(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                size += len(piece)
                self.held_bytes += len(piece)
                pieces.append(piece)
                if size > self._body_bytes_max:
                    raise too_large(self._body_bytes_max)
                if self.held_bytes > self._total_bytes_max:
                    raise overloaded("many large requests are arriving")
                if not message.get("more_body", False):
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self.held_bytes -= size
