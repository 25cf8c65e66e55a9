"""A stretch of history in memory, sorted into lives, ready to be replayed. Pure.

The shell reads streams and calls ``add`` for every decoded message; what is not of interest is
skipped. Bounded by what the caller reads.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from bus.codec import Decoded
from components.host.journal import EventRef
from components.replay.check import Report, compare_with_history, replay
from schemas.catalogue import BY_MESSAGE
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.message import Message
from schemas.request import RequestEvent, RequestEventsBatched

Life = tuple[str, int]


@dataclass(slots=True)
class Recording:
    """Snapshots, entries and request steps per (owner, epoch); other events by their envelope."""

    snapshots: defaultdict[Life, list[JournalSnapshotted]] = field(
        default_factory=lambda: defaultdict(list)
    )
    entries: defaultdict[Life, list[JournalAppended]] = field(
        default_factory=lambda: defaultdict(list)
    )
    steps: defaultdict[Life, list[RequestEvent]] = field(default_factory=lambda: defaultdict(list))
    events: dict[EventRef, Message] = field(default_factory=dict)

    def add(self, decoded: Decoded) -> None:
        """Take one message from a stream."""
        message, life = decoded.message, (decoded.source, decoded.epoch)
        match message:
            case JournalSnapshotted():
                self.snapshots[life].append(message)
            case JournalAppended():
                self.entries[life].append(message)
            case RequestEventsBatched():
                self.steps[life].extend(message.events)
            case _ if BY_MESSAGE[type(message)].kind == "evt":
                ref = EventRef(message.schema_id, decoded.source, decoded.epoch, decoded.seq)
                self.events[ref] = message

    def lives(self) -> list[Life]:
        """Owners and epochs that left a snapshot, oldest first."""
        return sorted(self.snapshots, key=lambda life: (life[1], life[0]))

    def start(self, life: Life) -> JournalSnapshotted:
        """The first snapshot of one life."""
        return min(self.snapshots[life], key=lambda s: s.index)

    def in_order(self, life: Life) -> list[JournalAppended]:
        """The entries of one life."""
        return sorted(self.entries[life], key=lambda e: e.index)

    def check(self, life: Life) -> Report:
        """Replay one life from its first snapshot and compare."""
        start = self.start(life)
        report, outcomes = replay(start, self.in_order(life), self.events.get)
        if start.index == 0:  # else the history also holds what happened before the snapshot
            compare_with_history(report, outcomes, self.steps[life])
        return report
