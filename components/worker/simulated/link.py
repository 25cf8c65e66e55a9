"""The wire between two simulated engines: no bytes, only the time that they take."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from components.domain.profiles import GIGA
from components.host.clock import Clock
from components.worker.engine import JobKey

#: Called with the key and, when it failed, why.
Done = Callable[[JobKey, str | None], None]


class Link(Protocol):
    """Moves the KV of one job at a time per key from this engine to a peer's."""

    def send(self, key: JobKey, peer: str, bytes_total: int, done: Done) -> None:
        """Begin; ``done`` is called once, from the event loop, unless ``stop`` comes first."""

    def stop(self, key: JobKey) -> None:
        """Nothing is read or reported for this key any more. Harmless for an unknown one."""

    def close(self) -> None:
        """Stop everything."""


class SimulatedLink:
    """A wire of a given bandwidth: transfers follow each other on it, the latency runs beside.

    ``speed`` divides all times, as it does the engine's.
    """

    def __init__(
        self, clock: Clock, *, gb_per_s: float, latency_ms: float, speed: float = 1.0
    ) -> None:
        self._clock = clock
        self._bytes_per_s = gb_per_s * GIGA * speed
        self._latency_s = latency_ms / 1e3 / speed
        self._wire_free_s = 0.0
        self._timers: dict[JobKey, asyncio.TimerHandle] = {}

    def send(self, key: JobKey, peer: str, bytes_total: int, done: Done) -> None:
        self.stop(key)
        now_s = self._clock.now_s()
        self._wire_free_s = max(now_s, self._wire_free_s) + bytes_total / self._bytes_per_s
        delay_s = self._wire_free_s + self._latency_s - now_s
        self._timers[key] = asyncio.get_running_loop().call_later(delay_s, self._end, key, done)

    def stop(self, key: JobKey) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        for key in list(self._timers):
            self.stop(key)

    def _end(self, key: JobKey, done: Done) -> None:
        del self._timers[key]
        done(key, None)
