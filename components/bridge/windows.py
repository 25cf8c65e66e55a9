"""Which signed datagrams are new: a window per sender, as IPsec has it. Pure, bounded.

A sender is (key, engine); a higher epoch is a new life of it, believed only when its clock is near
ours, because whoever recorded an old life could play it again after we forgot it.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal

WINDOW: Final = 4096
_MASK: Final = (1 << WINDOW) - 1

#: ``late``: new, but a later one was there before it.
Verdict = Literal["new", "late", "replayed", "old_epoch", "clock"]


@dataclass(slots=True)
class Window:
    """What was heard of one epoch: ``seen`` has bit i set when ``highest - i`` was."""

    epoch: int
    first: int
    highest: int
    seen: int = 1
    heard: int = 1

    def take(self, seq: int) -> Verdict:
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
    """At most ``senders_max``; the one that was silent for longest makes room."""

    senders_max: int
    clock_ms: int
    _of: OrderedDict[tuple[str, str], Window] = field(default_factory=OrderedDict)

    def take(
        self, sender: tuple[str, str], epoch: int, seq: int, sent_ms: int, wall_ms: int
    ) -> Verdict:
        """Is this datagram of ``sender`` new? Only what is new or late is remembered."""
        window = self._of.get(sender)
        if window is not None and epoch == window.epoch:
            self._of.move_to_end(sender)
            return window.take(seq)
        if window is not None and epoch < window.epoch:
            return "old_epoch"
        if abs(sent_ms - wall_ms) > self.clock_ms:
            return "clock"
        if window is None and len(self._of) >= self.senders_max:
            self._of.popitem(last=False)
        self._of[sender] = Window(epoch, seq, seq)
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
