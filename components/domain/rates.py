"""How much anybody may send: a token bucket per source, and one for all together. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """A token bucket: ``burst`` at once, ``per_s`` in the long run."""

    tokens: float
    filled_s: float

    def take(self, per_s: float, burst: int, now_s: float) -> bool:
        """Take one token; False when there is none."""
        self.tokens = min(burst, self.tokens + (now_s - self.filled_s) * per_s)
        self.filled_s = now_s
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(slots=True)
class Rates:
    """A flood is cut for its source, not for all. Remembers at most ``sources_max`` sources."""

    source_per_s: float
    source_burst: int
    sources_max: int
    total_per_s: float
    total_burst: int
    _sources: OrderedDict[Hashable, Bucket] = field(default_factory=OrderedDict, init=False)
    _all: Bucket | None = field(default=None, init=False)

    def admits(self, source: Hashable, now_s: float) -> bool:
        """May ``source`` send one more at ``now_s``? Takes the token if so."""
        bucket = self._sources.get(source)
        if bucket is None:
            if len(self._sources) >= self.sources_max:
                # The least recently heard has the fullest bucket: forgetting it gives least away.
                self._sources.popitem(last=False)
            bucket = self._sources[source] = Bucket(self.source_burst, now_s)
        else:
            self._sources.move_to_end(source)
        if self._all is None:
            self._all = Bucket(self.total_burst, now_s)
        return bucket.take(self.source_per_s, self.source_burst, now_s) and self._all.take(
            self.total_per_s, self.total_burst, now_s
        )

    def on_tick(self, now_s: float) -> None:
        """Forget sources whose bucket is full again."""
        full_after_s = self.source_burst / self.source_per_s
        while self._sources:
            source, bucket = next(iter(self._sources.items()))
            if now_s - bucket.filled_s < full_after_s:
                break
            del self._sources[source]

    def __len__(self) -> int:
        return len(self._sources)
