"""Time as a component sees it: injected, so that a test can let an hour pass in a millisecond."""

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """One process's time. Leases, deadlines and ages use ``now_s``; ``wall_ms`` is for people."""

    def now_s(self) -> float:
        """Monotonic seconds from an arbitrary start; never compared across processes."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970; may jump."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Return when ``delay_s`` have passed on this clock; at most one loop turn when <= 0."""


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_s: float = 1000.0, wall_ms: int = 1_795_000_000_000) -> None:
        self._now_s = now_s
        self._start_s = now_s
        self._wall_start_ms = wall_ms
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    def wall_ms(self) -> int:
        return self._wall_start_ms + round((self._now_s - self._start_s) * 1000)

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + delay_s, next(self._order), waiter))
        await waiter

    def advance(self, delta_s: float) -> None:
        """Move on by ``delta_s`` at once and wake who is due; they run in the next loop turns."""
        assert delta_s >= 0, "time does not run backwards"
        self._now_s += delta_s
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            _, _, waiter = heapq.heappop(self._sleepers)
            if not waiter.done():
                waiter.set_result(None)

    async def run_for(self, delta_s: float, *, turns: int = 5) -> None:
        """Let ``delta_s`` pass, stopping at each due sleeper and giving the loop ``turns`` turns.

        A timer of 0.1 s therefore fires ten times in a second, as it does on a real clock.
        """
        until_s = self._now_s + delta_s
        await _turns(turns)
        while self._sleepers and self._sleepers[0][0] <= until_s:
            self.advance(max(0.0, self._sleepers[0][0] - self._now_s))
            await _turns(turns)
        self.advance(max(0.0, until_s - self._now_s))
        await _turns(turns)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
