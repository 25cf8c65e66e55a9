"""Stopping is an event: it may come before there is a loop, and whatever waits can notice it.

The first SIGTERM or SIGINT asks for a stop; the second ends the process at once, with 128 + its
number. A handler set with ``signal.signal`` interrupts whatever the main thread executes, so the
loop takes the signals over once it runs: there they are callbacks among others.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: Ctrl-C in a terminal reaches a process and its supervisor, which passes it on: one wish.
SAME_WISH_S: Final = 0.3


class Interrupted(Exception):
    """A stop was asked for while something else was awaited."""


class StopRequest:
    """Whether, and why, the process shall stop."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._event = asyncio.Event()
        self._signalled_s: float | None = None

    def ask(self, reason: str) -> None:
        """Ask for a stop; the first reason stays. From the loop's thread."""
        if self.reason is None:
            self.reason = reason
        self._event.set()

    async def wait(self) -> None:
        """Return once a stop was asked for."""
        await self._event.wait()

    async def interrupts(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; when a stop is asked for first, cancel it, raise Interrupted."""
        if self._event.is_set():
            coroutine.close()
            raise Interrupted(self.reason)
        work = asyncio.ensure_future(coroutine)
        stop = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise Interrupted(self.reason)
        finally:
            stop.cancel()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work

    # Signals.

    def listen(self) -> None:
        """Hear the signals before there is a loop."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def listen_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear the signals in ``loop``, from its own task."""
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._signalled_s is not None and now_s - self._signalled_s > SAME_WISH_S:
            os._exit(128 + number)
        if self._signalled_s is None:
            self._signalled_s = now_s
        self.ask(signal.Signals(number).name)
