"""Room in a full table of engines: who ended first goes, and its record with it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from components.registry.engine_known import Known, is_gone
from schemas.engines import EngineRecord

#: Records that wait to be removed; while there are so many nobody makes room.
LEFT_MAX: Final = 4096


@dataclass(slots=True)
class Room:
    """Who makes room, and what is to be removed therefore."""

    #: Who could go, the first of them last; None: to be found out.
    _candidates: list[str] | None = None
    #: Who went and stands in the bucket still.
    _left: dict[str, EngineRecord] = field(default_factory=dict)

    def look_again(self) -> None:
        """Others may have ended. Once per tick, so that a crowd at a full table costs little."""
        self._candidates = None

    def make(self, engines: Mapping[str, Known], due: Mapping[str, None]) -> str | None:
        """Who is to go; who is ``due`` to be written goes after those who are written."""
        if len(self._left) >= LEFT_MAX:
            return None
        if self._candidates is None:
            gone = [name for name, known in engines.items() if is_gone(known)]
            gone.sort(key=lambda name: (name in due, _ended_ms(engines[name])), reverse=True)
            self._candidates = gone
        while self._candidates:
            name = self._candidates.pop()
            known = engines.get(name)
            if known is not None and is_gone(known):
                if known.record is not None:
                    self._left[name] = known.record
                return name
        return None

    def takes(self, name: str) -> None:
        """It is back in the table."""
        self._left.pop(name, None)

    def was_left(self, record: EngineRecord) -> bool:
        """Is it this very record that is to be removed?"""
        left = self._left.get(record.engine)
        return left is not None and left.revision == record.revision

    def left(self) -> list[EngineRecord]:
        """What is to be removed. Each is told once."""
        left, self._left = self._left, {}
        return list(left.values())

    def leave(self, *records: EngineRecord) -> None:
        """They are to be removed still."""
        for record in records:
            self._left.setdefault(record.engine, record)


def _ended_ms(known: Known) -> int:
    return known.record.updated_ms if known.record else 0
