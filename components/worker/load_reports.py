"""When to say how the engine is: on every change, at most so often; and once a second."""

import asyncio
from collections.abc import Callable
from typing import Final

from components.host.clock import Clock

#: A reader takes an engine for stale after two seconds.
SILENCE_S_MAX: Final = 1.0


class LoadReports:
    """Calls ``publish`` at most once per ``interval_s``; what changes in between goes together."""

    def __init__(self, clock: Clock, interval_s: float, publish: Callable[[], None]) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._publish = publish
        self._last_s = float("-inf")
        self._timer: asyncio.Handle | None = None

    def changed(self) -> None:
        """Something that the report says is different now. Cheap; call it freely."""
        if self._timer is not None:
            return
        loop, wait_s = asyncio.get_running_loop(), self._last_s + self._interval_s
        wait_s -= self._clock.now_s()
        # At the end of the turn at the earliest: what is said in this turn is said before it.
        self._timer = loop.call_later(wait_s, self.now) if wait_s > 0 else loop.call_soon(self.now)

    def on_tick(self) -> None:
        """Break the silence if it has been long."""
        if self._clock.now_s() - self._last_s >= SILENCE_S_MAX - self._interval_s:
            self.changed()

    def now(self) -> None:
        """Publish without waiting."""
        self.stop()
        self._last_s = self._clock.now_s()
        self._publish()

    def stop(self) -> None:
        """No report is on its way any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
