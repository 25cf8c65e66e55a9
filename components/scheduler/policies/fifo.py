"""First in, first out; what resumes goes before what is fresh."""

from collections.abc import Iterator
from itertools import islice


class Fifo:
    """Two insertion-ordered sets: resumed requests, then fresh ones. All but ``place`` are O(1)."""

    def __init__(self) -> None:
        self._resumed: dict[str, None] = {}
        self._fresh: dict[str, None] = {}

    def push(self, request_id: str, *, resumes: bool) -> None:
        (self._resumed if resumes else self._fresh)[request_id] = None

    def remove(self, request_id: str) -> None:
        self._resumed.pop(request_id, None)
        self._fresh.pop(request_id, None)

    def head(self, count: int) -> list[str]:
        return list(islice(iter(self), count))

    def place(self, request_id: str) -> int:
        if request_id in self._resumed:
            return list(self._resumed).index(request_id)
        # The last one in is the usual question, and costs nothing.
        if self._fresh and next(reversed(self._fresh)) == request_id:
            return len(self) - 1
        return len(self._resumed) + list(self._fresh).index(request_id)

    def __iter__(self) -> Iterator[str]:
        yield from self._resumed
        yield from self._fresh

    def __len__(self) -> int:
        return len(self._resumed) + len(self._fresh)
