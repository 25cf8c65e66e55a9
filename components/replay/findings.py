"""What the audit has found: counted, shown to who asks, and told to FLEET when that can be."""

from collections import deque
from typing import Any, Final

from bus import subjects
from components.host.host import Host
from components.replay.audit import Gap
from components.replay.lives import Tail
from schemas.history import HistoryGapFound, HistoryTailLost

#: Of gaps, and of tails.
SHOWN: Final = 100
#: What was found and could not be told yet; the oldest goes.
UNTOLD_MAX: Final = 4096


class Findings:
    """Gaps and lost tails, the newest last."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._gaps: deque[HistoryGapFound] = deque(maxlen=SHOWN)
        self._gaps_total = 0
        self._tails: deque[HistoryTailLost] = deque(maxlen=SHOWN)
        self._tails_total = 0
        self._untold: deque[HistoryGapFound | HistoryTailLost] = deque(maxlen=UNTOLD_MAX)

    def found(self, gap: Gap) -> None:
        """Events are missing, or came after all."""
        message = HistoryGapFound(
            stream=gap.stream,
            source=gap.source,
            epoch=gap.epoch,
            event=gap.event,
            first_seq=gap.first_seq,
            last_seq=gap.last_seq,
            at_ms=self._host.clock.wall_ms(),
            filled=gap.filled,
        )
        missing = gap.last_seq - gap.first_seq + 1
        self._host.counters.add("events_missing_total", -missing if gap.filled else missing)
        self._gaps.append(message)
        self._gaps_total += 1
        self._untold.append(message)
        log = self._host.log
        log.warning("%s: %s of %s", gap.stream, "came late" if gap.filled else "missing", gap)

    def ended(self, tail: Tail) -> None:
        """A life is over, and what it said last is not known to be whole."""
        host = self._host
        wall_ms = host.clock.wall_ms()
        ago_ms = round((host.clock.now_s() - tail.since_s) * 1000)
        message = HistoryTailLost(
            auditor=host.instance,
            source=tail.source,
            epoch=tail.epoch,
            since_ms=wall_ms - ago_ms,
            at_ms=wall_ms,
        )
        host.counters.add("tails_lost_total")
        self._tails.append(message)
        self._tails_total += 1
        self._untold.append(message)
        host.log.warning("what %s said last may be missing in part: %s", tail.source, tail)

    def tell(self) -> None:
        """FLEET takes messages, as far as we know."""
        bus, me = self._host.bus, self._host.instance
        while self._untold:
            match self._untold.popleft():
                case HistoryGapFound() as gap:
                    bus.publish(subjects.history_gap_found(me), gap)
                case HistoryTailLost() as tail:
                    bus.publish(subjects.history_tail_lost(me), tail)

    def shown(self) -> dict[str, Any]:
        """Fields of ``ShowHistoryReply``."""
        return {
            "gaps": tuple(self._gaps),
            "gaps_total": self._gaps_total,
            "tails": tuple(self._tails),
            "tails_total": self._tails_total,
        }
