"""What one choice has emitted, kept so that a reader who missed something gets exactly that.

A token costs four bytes and a reference to its text, and nothing that the garbage collector would
have to walk over: arrays of ids beside lists of texts, one text per id. The text of an entry with
several ids stands at the last of them.
"""

from array import array
from collections.abc import Iterator
from itertools import repeat
from typing import Any, Final

from schemas.frames import Entry

#: Ids that one entry of an answer may hold.
MERGED_IDS_MAX: Final = 256
TOKEN_BYTES: Final = 4 + 8
EXTRA_BYTES: Final = 600  # per id; logprobs of five tokens are about that


class ChoiceBuffer:
    """Entries of one choice from index ``start`` on. ``end`` is the next index it will use."""

    __slots__ = ("_extras", "_first", "_ids", "_tail", "_texts", "choice", "finish", "start")

    def __init__(self, choice: int, start: int) -> None:
        self.choice = choice
        self.start = self._first = start
        self.finish: list[Any] | None = None
        self._ids = array("I")
        self._texts: list[str] = []
        self._extras: dict[int, tuple[int, dict[str, Any]]] = {}
        self._tail = ""  # text that came with no id

    @property
    def end(self) -> int:
        return self.start + len(self._ids)

    @property
    def written(self) -> int:
        """Ids that came in, forgotten ones included."""
        return self.end - self._first

    @property
    def size_bytes(self) -> int:
        """About what this holds."""
        return len(self._ids) * TOKEN_BYTES + len(self._extras) * EXTRA_BYTES

    def append(self, entry: Entry) -> int:
        """Keep an entry; returns about how many bytes that takes."""
        _, _, _, first_index, ids, text, extra, finish = entry
        size = len(ids) * TOKEN_BYTES
        if len(ids) == 1:
            self._texts.append(text)
        elif ids:
            self._texts.extend(repeat("", len(ids) - 1))
            self._texts.append(text)
        else:
            self._tail += text
        self._ids.extend(ids)
        if extra is not None and ids:
            self._extras[first_index] = (len(ids), extra)
            size += EXTRA_BYTES
        if finish is not None:
            self.finish = finish
        return size

    def trim(self, keep: int) -> int:
        """Forget all but the last ``keep`` ids; returns about how many bytes that frees."""
        before = self.size_bytes
        forgotten = max(0, len(self._ids) - keep)
        self.start += forgotten
        del self._ids[:forgotten]
        del self._texts[:forgotten]
        for index in [i for i in self._extras if i < self.start]:
            del self._extras[index]
        return before - self.size_bytes

    def since(self, index: int, request_id: str, attempt: int) -> Iterator[Entry]:
        """What a reader at ``index`` (not before ``start``) misses, oldest first, merged."""
        while index < self.end:
            stop, extra = self._stretch(index)
            ids = self._ids[index - self.start : stop - self.start].tolist()
            text = "".join(self._texts[index - self.start : stop - self.start])
            last = stop == self.end
            finish = self.finish if last else None
            text += self._tail if last else ""
            yield (request_id, attempt, self.choice, index, ids, text, extra, finish)
            index = stop
            if last:
                return
        if self.finish is not None or self._tail:
            yield (request_id, attempt, self.choice, self.end, [], self._tail, None, self.finish)

    def _stretch(self, index: int) -> tuple[int, dict[str, Any] | None]:
        """The end of the entry that begins at ``index``, and its extra: those are not merged."""
        if not self._extras:
            return min(self.end, index + MERGED_IDS_MAX), None
        kept = self._extras.get(index)
        if kept is not None:
            return index + kept[0], kept[1]
        ahead = (i for i in self._extras if i > index)
        return min(self.end, index + MERGED_IDS_MAX, min(ahead, default=self.end)), None
