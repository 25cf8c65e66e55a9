"""Paged KV with a prefix cache: who holds pages, which free ones still hold something of use.

A page is in one of four places:

    shared    has a hash, held by at least one sequence (counted)
    private   no hash (yet), held by one sequence
    cached    has a hash, held by nobody: free, but found again by `match` until it is taken
    empty     the rest

Cached pages go in order of release, oldest first. A sequence lets go of its pages from its tail to
its head, so of one prompt the tail is evicted first, and a page never outlives the one before it.
"""

from collections import OrderedDict
from collections.abc import Sequence


class PageCache:
    """Counts pages; knows hashes, but no sequence. Callers keep `used` within `pages_total`."""

    __slots__ = ("_cached", "_shared", "pages_total", "private")

    def __init__(self, pages_total: int) -> None:
        self.pages_total = pages_total
        self.private = 0
        self._shared: dict[int, int] = {}
        # Ordered, not a plain dict: taking the oldest of a dict walks over what was taken before.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Pages held by sequences."""
        return len(self._shared) + self.private

    @property
    def cached(self) -> int:
        """Free pages that hold something of use."""
        return len(self._cached)

    @property
    def available(self) -> int:
        """Pages that nobody holds, cached ones included."""
        return self.pages_total - self.used

    @property
    def empty(self) -> int:
        """Pages that can be taken without forgetting anything."""
        return self.pages_total - self.used - len(self._cached)

    def match(self, hashes: Sequence[int], pages_max: int) -> int:
        """How many leading `hashes`, at most `pages_max`, are here."""
        hits = 0
        for page in hashes[:pages_max]:
            if page not in self._shared and page not in self._cached:
                break
            hits += 1
        return hits

    def fits(self, hashes: Sequence[int], hits: int, pages: int) -> bool:
        """Whether `pages` pages, the first `hits` of them found here, can be held now."""
        revived = sum(page in self._cached for page in hashes[:hits])
        return pages - hits + revived <= self.available

    def take(self, hashes: Sequence[int], hits: int, pages: int) -> list[int]:
        """Hold the `hits` pages found and `pages - hits` private ones; what was evicted."""
        self._hold(hashes[:hits])
        return self.grow(pages - hits)

    def grow(self, pages: int) -> list[int]:
        """Hold `pages` more private pages; what was evicted, oldest first."""
        self.private += pages
        return [self._cached.popitem(last=False)[0] for _ in range(-self.empty)]

    def publish(self, hashes: Sequence[int]) -> list[int]:
        """Private pages become shared under `hashes`; those not known before.

        A page that another sequence computed meanwhile is held twice under one hash, and the
        private copy becomes empty.
        """
        self.private -= len(hashes)
        return self._hold(hashes)

    def release(self, hashes: Sequence[int], private: int) -> None:
        """Let go of shared pages, given from head to tail, and of `private` pages."""
        self.private -= private
        for page in reversed(hashes):
            holders = self._shared[page] - 1
            if holders:
                self._shared[page] = holders
            else:
                del self._shared[page]
                self._cached[page] = None

    def forget(self) -> list[int]:
        """Empty what is cached; the hashes that are found no more."""
        forgotten = list(self._cached)
        self._cached.clear()
        return forgotten

    def _hold(self, hashes: Sequence[int]) -> list[int]:
        """Hold pages under their hashes; those that were not here."""
        shared, cached = self._shared, self._cached
        new = []
        for page in hashes:
            holders = shared.get(page, 0)
            shared[page] = holders + 1
            if holders:
                continue
            if page in cached:
                del cached[page]
            else:
                new.append(page)
        return new
