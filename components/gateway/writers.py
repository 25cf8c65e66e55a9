"""The way of a stream's bytes to its client: straight onto the connection, or over ASGI's ``send``.

`DirectWriter` writes from within the read of the bus: no task is woken per stream and token. It
needs our own protocol under the application; under another server `AsgiWriter` does the same work.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

Send = Callable[[Mapping[str, Any]], Awaitable[None]]

#: Bytes that a writer takes before it asks to pause.
PAUSE_BYTES: Final = 64 * 1024


class StreamWriter(Protocol):
    """The way to one client's socket. Nothing here waits."""

    @property
    def paused(self) -> bool:
        """Is the client behind? What is written meanwhile is kept, so write only what must be."""
        ...

    @property
    def blocked_since_s(self) -> float | None:
        """Since when the client has taken nothing although there was something."""
        ...

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Nothing follows."""

    def abort(self) -> None:
        """Drop the connection with what was not taken yet."""

    async def run(self) -> None:
        """Returns when everything was handed over after ``close``, or is lost."""


class Connection(Protocol):
    """What a `DirectWriter` needs of the connection: our HTTP protocol keeps this promise."""

    @property
    def write_paused(self) -> bool:
        """Has the transport more to send than it wants to hold?"""
        ...

    def write_body(self, data: bytes) -> None:
        """A part of the present answer's body, framed as its head has said."""

    def abort(self) -> None: ...

    def watch_pauses(self, changed: Callable[[bool], None] | None) -> None:
        """Call back with what ``write_paused`` has become; None: no more."""


class DirectWriter:
    """A writer on the connection itself, once the head of the answer has left."""

    def __init__(
        self,
        connection: Connection,
        send: Send,
        now_s: Callable[[], float],
        on_drained: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._send = send
        self._now_s = now_s
        self._on_drained = on_drained
        self._closed = asyncio.Event()
        self._blocked_since_s: float | None = None
        connection.watch_pauses(self._pause_changed)

    @property
    def paused(self) -> bool:
        return self._connection.write_paused

    @property
    def blocked_since_s(self) -> float | None:
        return self._blocked_since_s

    def write(self, data: bytes) -> None:
        if data and not self._closed.is_set():
            self._connection.write_body(data)

    def close(self) -> None:
        self._closed.set()

    def abort(self) -> None:
        self._closed.set()
        self._connection.abort()

    async def run(self) -> None:
        try:
            await self._closed.wait()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._connection.watch_pauses(None)

    def _pause_changed(self, paused: bool) -> None:  # noqa: FBT001  (a transport's callback)
        self._blocked_since_s = self._now_s() if paused else None
        if not paused:
            self._on_drained()


class AsgiWriter:
    """A writer over ASGI's ``send``, which waits; ``run`` does the waiting."""

    def __init__(
        self,
        send: Send,
        now_s: Callable[[], float],
        on_drained: Callable[[], None],
    ) -> None:
        self._send = send
        self._now_s = now_s
        self._on_drained = on_drained
        self._run: asyncio.Task[Any] | None = None
        self._pending: list[bytes] = []
        self._size = 0
        self._closed = False
        self._wake = asyncio.Event()
        self._blocked_since_s: float | None = None

    @property
    def paused(self) -> bool:
        return self._size > PAUSE_BYTES

    @property
    def blocked_since_s(self) -> float | None:
        return self._blocked_since_s

    def write(self, data: bytes) -> None:
        if data and not self._closed:
            self._pending.append(data)
            self._size += len(data)
            self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    def abort(self) -> None:
        # All that ASGI offers: end the task, and the server closes what it was answering.
        if self._run is not None:
            self._run.cancel()

    async def run(self) -> None:
        self._run = asyncio.current_task()
        while True:
            await self._wake.wait()
            self._wake.clear()
            data = b"".join(self._pending)
            self._pending.clear()
            # Until the client has taken it, it counts: what is in flight is a reason to pause.
            ends = self._closed
            self._blocked_since_s = self._now_s()
            await self._send({"type": "http.response.body", "body": data, "more_body": not ends})
            self._blocked_since_s = None
            self._size -= len(data)
            if ends:
                return
            self._on_drained()
