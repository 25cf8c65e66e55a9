"""What an engine has to say: collected in one turn of the event loop, said in the next.

Everything that one step wakes writes in the same turn, so a step becomes one call of the sink.
"""

import asyncio
from collections.abc import Callable

from components.worker.engine import EngineEvent, JobKey, KvArrived, Sink
from schemas.frames import Entry


class Outbox:
    """``first`` is called before each delivery, also when there is nothing to deliver."""

    def __init__(self, first: Callable[[], None] = lambda: None) -> None:
        self._first = first
        self._sink: Sink | None = None
        self._entries: list[Entry] = []
        self._events: list[EngineEvent] = []
        self._planned = False

    def open(self, sink: Sink) -> None:
        """From now on somebody listens."""
        self._sink = sink

    def close(self) -> None:
        """Nobody listens any more; what is not said yet never is."""
        self._sink = None
        self._entries.clear()
        self._events.clear()

    def write(self, entry: Entry) -> None:
        """Say what came of one choice. A bare end joins what was said last, if that is its own."""
        last = self._entries[-1] if self._entries else None
        *_, ids, text, extra, end = entry
        if last and last[:3] == entry[:3] and last[-1] is None and not (ids or text or extra):
            self._entries[-1] = (*last[:-1], end)
        else:
            self._entries.append(entry)
        self.soon()

    def report(self, event: EngineEvent) -> None:
        """Say what happened to one job."""
        self._events.append(event)
        self.soon()

    def forget(self, key: JobKey) -> None:
        """What was written of a job that nobody has seen yet is nobody's any more."""
        self._entries = [e for e in self._entries if (e[0], e[1]) != key]
        self._events = [e for e in self._events if e.key != key]

    def soon(self) -> None:
        """Deliver in the next turn of the event loop."""
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._planned = False
        self._first()
        entries, self._entries = self._entries, []
        events, self._events = self._events, []
        if self._sink is None or not (entries or events):
            return
        # The KV of a job arrived before its first token.
        arrivals: list[EngineEvent] = [e for e in events if isinstance(e, KvArrived)]
        if arrivals:
            self._sink([], arrivals)
        self._sink(entries, [e for e in events if not isinstance(e, KvArrived)])
