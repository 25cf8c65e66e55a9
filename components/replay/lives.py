"""Whose last words are unknown? Pure.

Every process says again and again what it has published. One that ends after something was wrong
with the store, and before it was asked again, leaves a *tail* of which nobody knows: what it
published since it last answered may be missing, and no number says so.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

Life = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Tail:
    """What this life published since ``since_s`` may be missing."""

    source: str
    epoch: int
    since_s: float


@dataclass(slots=True)
class Lives:
    """A life that did not answer for ``gone_after_s`` is over. At most ``lives_max`` of them."""

    gone_after_s: float = 20.0
    lives_max: int = 4096
    forgotten_total: int = 0
    #: When each life last answered, the one silent for longest first.
    _answered_s: OrderedDict[Life, float] = field(default_factory=OrderedDict)
    #: When something was last wrong with the store, and until when nobody could answer.
    _trouble_s: float = float("-inf")
    _deaf_s: float = float("-inf")

    def on_answer(self, source: str, epoch: int, now_s: float) -> None:
        """It said what it has published; the life silent for longest makes room."""
        life = (source, epoch)
        if len(self._answered_s) >= self.lives_max and life not in self._answered_s:
            self._answered_s.popitem(last=False)
            self.forgotten_total += 1
        self._answered_s[life] = now_s
        self._answered_s.move_to_end(life)

    def on_trouble(self, now_s: float) -> None:
        """The store was away or is: what was on its way may be lost, and nobody could be asked."""
        self._trouble_s = self._deaf_s = now_s

    def on_tick(self, now_s: float) -> list[Tail]:
        """Lives that are over and were last asked before the last trouble, each once."""
        tails = []
        while self._answered_s:
            life, answered_s = next(iter(self._answered_s.items()))
            if now_s - max(answered_s, self._deaf_s) <= self.gone_after_s:
                break
            del self._answered_s[life]
            if self._trouble_s >= answered_s:
                tails.append(Tail(*life, answered_s))
        return tails
