"""Was everything stored that was published? Pure.

Every event carries (source, epoch, seq), where seq counts the events of one kind: a *line*. The
audit reads the streams, so it sees holes in a line, and hears from each process how far its lines
have got, so it sees what is missing at the end of one. That is the acknowledgement: not a server's
word that it will keep a message, but the message, read back.

What is missing is only *found* after a grace: messages overtake what processes say of them, and a
stream is not ordered across senders. What retention took away was there; the audit does not look
behind the beginning of a stream.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

Key = tuple[str, str, int]


@dataclass(slots=True)
class Hole:
    """Numbers ``first`` to ``last`` of a line that were not seen; when it was found to be one."""

    first: int
    last: int
    since_s: float
    found_s: float | None = None

    @property
    def waits(self) -> bool:
        """May it still be filled before anybody is told?"""
        return self.found_s is None


@dataclass(slots=True)
class Line:
    """One (event, source, epoch): how far it was seen, and what was not."""

    stream: str
    highest: int = 0
    holes: list[Hole] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Gap:
    """What was found, or had been found and came after all."""

    stream: str
    event: str
    source: str
    epoch: int
    first_seq: int
    last_seq: int
    filled: bool = False


@dataclass(slots=True)
class Audit:
    """At most ``lines_max`` lines (the one silent for longest goes) of ``holes_max`` holes each.

    A hole that was found is remembered for ``remember_s``, to be withdrawn when it is filled.
    """

    grace_s: float = 5.0
    remember_s: float = 3600.0
    lines_max: int = 65_536
    holes_max: int = 256
    told_max: int = 65_536
    #: When each stream's oldest message was written, in ms: lines that began before it may have
    #: lost their beginning to retention.
    begins_ms: dict[str, int] = field(default_factory=dict)
    forgotten_total: int = 0
    _lines: OrderedDict[Key, Line] = field(default_factory=OrderedDict)
    #: Lines with a hole that waits; what is looked at every second.
    _open: dict[Key, Line] = field(default_factory=dict)
    _found: deque[tuple[float, Key]] = field(default_factory=lambda: deque(maxlen=65_536))
    _filled: deque[Gap] = field(default_factory=lambda: deque(maxlen=1024))
    #: The youngest life of which a line was forgotten: the past of it and of older ones is unknown.
    _forgotten_epoch: int = -1
    #: What an earlier audit has told: these holes are known, and not told again.
    _told: OrderedDict[Key, list[tuple[int, int]]] = field(default_factory=OrderedDict)
    _told_count: int = 0

    def on_told(self, key: Key, first: int, last: int) -> None:
        """The streams hold that numbers ``first`` to ``last`` of a line are missing."""
        self._told.setdefault(key, []).append((first, last))
        self._told_count += 1
        if self._told_count > self.told_max:
            _, ranges = self._told.popitem(last=False)
            self._told_count -= len(ranges)

    def _untold(self, key: Key, hole: Hole) -> Iterator[tuple[int, int]]:
        """The parts of a hole that no earlier audit has told of."""
        begin = hole.first
        for first, last in sorted(self._told.get(key, ())):
            if last < begin or first > hole.last:
                continue
            if first > begin:
                yield begin, first - 1
            begin = last + 1
        if begin <= hole.last:
            yield begin, hole.last

    # What is read, and what processes say.

    def on_event(self, stream: str, key: Key, seq: int, now_s: float) -> None:
        """An event of line ``key`` (kind, source, epoch) was read from a stream."""
        line, epoch = self._line(key, stream), key[2]
        if line.highest == 0:
            line.highest = 0 if self._is_whole(stream, epoch) else seq - 1
        if seq > line.highest:
            if seq > line.highest + 1:
                self._miss(key, line, line.highest + 1, seq - 1, now_s)
            line.highest = seq
        elif line.holes:
            self._late(key, line, seq)

    def on_published(
        self,
        streams: Mapping[str, str],
        source: str,
        epoch: int,
        counts: Mapping[str, int],
        now_s: float,
    ) -> None:
        """A process says how many events of each kind it has published; ``streams`` by kind."""
        for event, count in counts.items():
            stream = streams.get(event)
            if stream is None or count <= 0:
                continue
            key = (event, source, epoch)
            line = self._lines.get(key)
            if line is None:
                if not self._is_whole(stream, epoch):
                    continue  # it may have been there, and gone by retention
                line = self._line(key, stream)
            if count > line.highest:
                self._miss(key, line, line.highest + 1, count, now_s)
                line.highest = count

    def on_unread(self, stream: str, wall_ms: int) -> None:
        """Retention took away what was not read yet: whatever it was, it was there."""
        self.begins_ms[stream] = wall_ms
        for key in [key for key, line in self._lines.items() if line.stream == stream]:
            self._forget(key)

    def _is_whole(self, stream: str, epoch: int) -> bool:
        """Can all of a line that is new here be expected, from its first number on?"""
        return epoch >= self.begins_ms.get(stream, 0) and epoch > self._forgotten_epoch

    # What is missing.

    def on_tick(self, now_s: float, unsure: Collection[str] = ()) -> list[Gap]:
        """What has been missing for longer than the grace, told once; and what came after all.

        Of ``unsure`` streams nothing is told: it is not known yet what stays missing there.
        """
        self._forget_found(now_s)
        gaps = list(self._filled)
        self._filled.clear()
        for key, line in tuple(self._open.items()):
            if line.stream not in unsure:
                gaps += self._overdue(key, line, now_s)
        return gaps

    def _overdue(self, key: Key, line: Line, now_s: float) -> list[Gap]:
        gaps = []
        for hole in line.holes:
            if hole.waits and now_s - hole.since_s > self.grace_s:
                hole.found_s = now_s
                self._found.append((now_s, key))
                gaps += [Gap(line.stream, *key, a, b) for a, b in self._untold(key, hole)]
        self._close(key, line)
        return gaps

    def forgive(self, now_s: float, stream: str | None = None) -> None:
        """A stream, or all, could not be read: until now nobody knows what it holds."""
        for _, hole in self._waiting(stream):
            hole.since_s = now_s

    def waiting(self, stream: str | None = None) -> int:
        """Events that are missing and were not told of yet."""
        return sum(hole.last - hole.first + 1 for _, hole in self._waiting(stream))

    def oldest_wait_s(self, now_s: float, stream: str | None = None) -> float:
        """For how long the oldest of those has been missing; 0 when none is."""
        return max((now_s - hole.since_s for _, hole in self._waiting(stream)), default=0.0)

    def _waiting(self, stream: str | None) -> Iterator[tuple[Key, Hole]]:
        for key, line in self._open.items():
            if stream in {None, line.stream}:
                yield from ((key, hole) for hole in line.holes if hole.waits)

    # Lines and their holes.

    def _line(self, key: Key, stream: str) -> Line:
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= self.lines_max:
                gone = next(iter(self._lines))
                self._forget(gone)
                self._forgotten_epoch = max(self._forgotten_epoch, gone[2])
                self.forgotten_total += 1
            line = self._lines[key] = Line(stream)
        else:
            self._lines.move_to_end(key)
        return line

    def _forget(self, key: Key) -> None:
        del self._lines[key]
        self._open.pop(key, None)

    def _miss(self, key: Key, line: Line, first: int, last: int, now_s: float) -> None:
        self._open[key] = line
        previous = line.holes[-1] if line.holes else None
        if previous is not None and previous.waits and previous.last == first - 1:
            previous.last = last  # one outage, one hole
            return
        if len(line.holes) >= self.holes_max:
            del line.holes[0]
            self.forgotten_total += 1
        line.holes.append(Hole(first, last, now_s))

    def _late(self, key: Key, line: Line, seq: int) -> None:
        """It fills a hole, or a part of one, or is there twice."""
        for place, hole in enumerate(line.holes):
            if not hole.first <= seq <= hole.last:
                continue
            if not hole.waits:
                self._filled.append(Gap(line.stream, *key, seq, seq, filled=True))
            left = [
                Hole(first, last, hole.since_s, hole.found_s)
                for first, last in ((hole.first, seq - 1), (seq + 1, hole.last))
                if first <= last
            ]
            line.holes[place : place + 1] = left
            self._close(key, line)
            return

    def _close(self, key: Key, line: Line) -> None:
        if not any(hole.waits for hole in line.holes):
            self._open.pop(key, None)

    def _forget_found(self, now_s: float) -> None:
        """Nobody waits any more for what was found long ago."""
        oldest_s = now_s - self.remember_s
        while self._found and self._found[0][0] < oldest_s:
            _, key = self._found.popleft()
            if line := self._lines.get(key):
                line.holes = [h for h in line.holes if h.found_s is None or h.found_s >= oldest_s]
