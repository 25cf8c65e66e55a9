"""Which signed datagrams are new: a window per sender, as IPsec has it. Pure, bounded.

A sender is (key, engine). What it said before is told from what it says by its numbers; a frame
that comes again at once, byte for byte, is a copy that came another way, and later it is a replay.

A higher epoch is a new life of it, believed only when its clock is near ours, because whoever
recorded an old life could play it again after we forgot it. That bound alone would let the frames
of the last ``clock_ms`` before our own start be played again, since windows are in memory. So for
that long after the start nothing is believed that was stamped before it. A sender whose clock is
behind is unheard for as much as that at most, once; of one whose clock is ahead, the frames stamped
beyond our start remain: keep clocks together (NTP). A sender that was pushed out by
``senders_max`` others is in the same place.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal

from components.domain.signed_frame import Frame

WINDOW: Final = 4096
_MASK: Final = (1 << WINDOW) - 1
#: A broadcasting sender reaches one host by up to three ways, at once.
DUPLICATE_S: Final = 0.5
#: The last of them that copies are told by: of a sender at 5/s, three seconds' worth.
RECENT: Final = 16

#: ``late``: new, but a later one was there before it. ``copy``: the same frame came just before.
Verdict = Literal["new", "late", "copy", "replayed", "old_epoch", "clock", "before_start"]


@dataclass(slots=True)
class Window:
    """What was heard of one epoch: ``seen`` has bit i set when ``highest - i`` was.

    ``recent``: when the last few were heard, by number and mac, oldest first.
    """

    epoch: int
    first: int
    highest: int
    seen: int = 1
    heard: int = 1
    recent: OrderedDict[tuple[int, bytes], float] = field(default_factory=OrderedDict)

    def take(self, frame: Frame, now_s: float) -> Verdict:
        verdict = self._place(frame.seq)
        if verdict != "replayed":
            self.remember(frame, now_s)
        elif now_s - self.recent.get((frame.seq, frame.mac), -math.inf) <= DUPLICATE_S:
            return "copy"
        return verdict

    def remember(self, frame: Frame, now_s: float) -> None:
        """It is heard for the first time now."""
        self.recent[frame.seq, frame.mac] = now_s
        if len(self.recent) > RECENT:
            self.recent.popitem(last=False)

    def _place(self, seq: int) -> Verdict:
        ahead = seq - self.highest
        if ahead > 0:
            self.seen = ((self.seen << ahead) | 1) & _MASK if ahead < WINDOW else 1
            self.highest = seq
            self.heard += 1
            return "new"
        if -ahead >= WINDOW or self.seen >> -ahead & 1:
            return "replayed"
        self.seen |= 1 << -ahead
        self.heard += 1
        self.first = min(self.first, seq)
        return "late"

    @property
    def lost(self) -> int:
        """Numbers between the first and the highest that were not heard (yet)."""
        return max(0, self.highest - self.first + 1 - self.heard)


@dataclass(slots=True)
class Windows:
    """At most ``senders_max``; the one that was silent for longest makes room.

    ``started_s`` and ``started_ms`` are the start by the monotonic and by the wall clock.
    """

    senders_max: int
    clock_ms: int
    started_s: float = 0.0
    started_ms: int = 0
    _of: OrderedDict[tuple[str, str], Window] = field(default_factory=OrderedDict)

    def take(self, sender: tuple[str, str], frame: Frame, now_s: float, wall_ms: int) -> Verdict:
        """Is this datagram of ``sender`` new? Only what is new or late is remembered."""
        window = self._of.get(sender)
        if window is not None and frame.epoch == window.epoch:
            self._of.move_to_end(sender)
            return window.take(frame, now_s)
        if window is not None and frame.epoch < window.epoch:
            return "old_epoch"
        if abs(frame.sent_ms - wall_ms) > self.clock_ms:
            return "clock"
        # By the monotonic clock, so that a wall clock that is set back shuts nobody out for long.
        just_started = (now_s - self.started_s) * 1e3 <= self.clock_ms
        if just_started and frame.sent_ms < self.started_ms:
            return "before_start"
        if window is None and len(self._of) >= self.senders_max:
            self._of.popitem(last=False)
        window = self._of[sender] = Window(frame.epoch, frame.seq, frame.seq)
        window.remember(frame, now_s)
        self._of.move_to_end(sender)
        return "new"

    def lost(self, sender: tuple[str, str]) -> int:
        """See ``Window.lost``; 0 for one that is not known."""
        window = self._of.get(sender)
        return window.lost if window else 0

    def heard(self, sender: tuple[str, str]) -> int:
        """Datagrams of its life that were heard."""
        window = self._of.get(sender)
        return window.heard if window else 0

    def __len__(self) -> int:
        return len(self._of)
