"""Side tasks: every one has a name, none dies unnoticed, and stopping says what was left over.

asyncio keeps only weak references to tasks and reports a lost exception when it is collected, if
ever. Here a task is held until it is done, and an exception that nobody expected is a fault of the
process, at once.
"""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from components.host.clock import Clock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A side task that had not ended, and for how long it has been running."""

    name: str
    age_s: float

    def __str__(self) -> str:
        return f"{self.name} ({self.age_s:.1f} s)"


@dataclass(frozen=True, slots=True)
class Timer:
    """What ``Tasks.every`` started."""

    _task: asyncio.Task[None]

    def cancel(self) -> None:
        """No more calls. Harmless twice."""
        self._task.cancel()


class Tasks:
    """The side tasks of one process. ``on_fault`` gets what a task raised and nobody caught."""

    def __init__(self, clock: Clock, on_fault: Callable[[BaseException], None]) -> None:
        self._clock = clock
        self._on_fault = on_fault
        self._started_s: dict[asyncio.Task[Any], float] = {}
        self._timers: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._started_s)

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``coroutine`` beside everything else; after ``stop`` it is cancelled at once."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._started_s[task] = self._clock.now_s()
        task.add_done_callback(self._ended)
        if self._stopped:
            task.cancel()
        return task

    def every(
        self, name: str, interval_s: float, callback: Callable[[], Awaitable[None] | None]
    ) -> Timer:
        """Call ``callback`` (plain or async) each ``interval_s``, first after one interval.

        Calls keep to the grid of the first one and never overlap; those that a slow call or a busy
        loop missed are left out.
        """
        assert interval_s > 0, f"{name}: an interval is more than 0 s"
        task = self.spawn(name, self._repeat(interval_s, callback))
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)
        return Timer(task)

    def running(self, prefix: str = "") -> list[Leftover]:
        """Tasks that have not ended, whose name starts with ``prefix``, oldest first; no timers."""
        now_s = self._clock.now_s()
        return [Leftover(t.get_name(), now_s - self._started_s[t]) for t in self._finite(prefix)]

    async def drain(self, deadline_s: float, prefix: str = "") -> list[Leftover]:
        """Wait for the tasks whose name starts with ``prefix``; returns those left at the deadline.

        Timers are not waited for. ``deadline_s`` is real time from now.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s
        while waiting := self._finite(prefix):
            left_s = until_s - loop.time()
            if left_s <= 0:
                break
            await asyncio.wait(waiting, timeout=left_s)
        return self.running(prefix)

    async def stop(self, grace_s: float = 2.0) -> list[Leftover]:
        """Cancel everything; returns those that did not end within ``grace_s`` (real time)."""
        self._stopped = True
        me = asyncio.current_task()
        tasks = [t for t in self._started_s if t is not me]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        now_s = self._clock.now_s()
        left = [t for t in self._started_s if t is not me]
        return [Leftover(t.get_name(), now_s - self._started_s[t]) for t in left]

    def _finite(self, prefix: str) -> list[asyncio.Task[Any]]:
        me = asyncio.current_task()
        return [
            t
            for t in self._started_s
            if t is not me and t not in self._timers and t.get_name().startswith(prefix)
        ]

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._started_s[task]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            error.add_note(f"in the side task {task.get_name()!r}")
            self._on_fault(error)

    async def _repeat(
        self, interval_s: float, callback: Callable[[], Awaitable[None] | None]
    ) -> None:
        start_s = self._clock.now_s()
        beats = 0
        while True:
            # The next place on the grid that is not in the past.
            missed = math.ceil((self._clock.now_s() - start_s) / interval_s - 1e-6)
            beats = max(beats + 1, missed)
            await self._clock.sleep(start_s + beats * interval_s - self._clock.now_s())
            result = callback()
            if inspect.isawaitable(result):
                await result
