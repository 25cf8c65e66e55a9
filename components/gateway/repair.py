"""Which streams miss something, and when to ask their workers for it. Pure.

At most one question to a worker is on its way, naming all its streams that want something; so an
outage of a moment costs one question per worker, however many streams it cut.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from schemas.attempt import ResumeStreams, StreamPosition

#: Streams that one question may name; the rest goes into the next one.
POSITIONS_MAX: Final = 256


@dataclass(slots=True)
class _Worker:
    wanting: dict[str, None] = field(default_factory=dict)
    asking: bool = False
    retry_s: float = 0.0


@dataclass(slots=True)
class Repairs:
    """Per worker the requests that want something. A worker without any is forgotten."""

    retry_after_s: float
    _workers: dict[str, _Worker] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._workers)

    def want(self, worker: str, request_id: str) -> bool:
        """Ask for what this request misses; False when that is planned already."""
        repair = self._workers.setdefault(worker, _Worker())
        if request_id in repair.wanting:
            return False
        repair.wanting[request_id] = None
        return True

    def satisfied(self, worker: str, request_id: str) -> None:
        """It has all it wanted, or runs elsewhere; harmless when it wanted nothing."""
        repair = self._workers.get(worker)
        if repair is not None:
            repair.wanting.pop(request_id, None)

    def answered(self, worker: str, now_s: float, *, ask_at_once: bool) -> None:
        """An answer came, or none will."""
        repair = self._workers.get(worker)
        if repair is not None:
            repair.asking = False
            repair.retry_s = now_s + (0.0 if ask_at_once else self.retry_after_s)

    def forget(self, worker: str) -> None:
        """The worker is lost; an answer that still comes changes nothing."""
        self._workers.pop(worker, None)

    def questions(
        self, positions_of: Callable[[str], list[StreamPosition]], now_s: float
    ) -> Iterator[tuple[str, ResumeStreams]]:
        """The questions to send now, each counted as on its way."""
        for worker, repair in list(self._workers.items()):
            if repair.asking:
                continue
            if not repair.wanting:
                del self._workers[worker]
                continue
            if now_s < repair.retry_s:
                continue
            positions: list[StreamPosition] = []
            for request_id in repair.wanting:
                if len(positions) >= POSITIONS_MAX:
                    break
                positions += positions_of(request_id)
            repair.asking = True
            yield worker, ResumeStreams(positions=tuple(positions))
