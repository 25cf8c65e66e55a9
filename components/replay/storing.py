"""Does a stream store what is published? Pure.

Something is missing in a stream and nothing arrives there: is that one loss, or does nothing reach
its disk? A probe that is published into that very stream tells: it is read back, or it is not. Each
stream is judged on its own, because disks fill file by file.
"""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["stores", "unsure", "silent"]


@dataclass(slots=True)
class Storing:
    """A stream is probed after ``patience_s`` of silence, and silent ``answer_s`` after that."""

    patience_s: float = 1.0
    answer_s: float = 3.0
    _read_s: dict[str, float] = field(default_factory=dict)
    #: When the first probe that was not read back was published.
    _probed_s: dict[str, float] = field(default_factory=dict)

    def on_read(self, stream: str, now_s: float) -> None:
        """Anything at all came from the stream."""
        self._read_s[stream] = now_s
        self._probed_s.pop(stream, None)

    def judge(self, stream: str, missing_s: float, now_s: float) -> Verdict:
        """What to think of a stream that something has been missing in for ``missing_s``.

        Publish a probe into each stream that is not judged to store.
        """
        quiet_s = now_s - self._read_s.get(stream, float("-inf"))
        if min(missing_s, quiet_s) <= self.patience_s:
            self._probed_s.pop(stream, None)
            return "stores"
        since_s = self._probed_s.setdefault(stream, now_s)
        return "silent" if now_s - since_s > self.answer_s else "unsure"
