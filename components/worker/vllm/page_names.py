"""What vLLM's prefix cache holds, by the names that our pages have everywhere else. Pure.

vLLM names blocks by hashes of its own, and tells of each block its tokens, its parent and its salt.
The salt is the name of the block's first page (``sequences.salt_of``); from there each page's name
follows from the one before it and its tokens, as in ``components/domain/pages.py``. A block whose
beginning has no salt (a prompt of less than a page) stays nameless, and so does what follows it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.domain.pages import PAGE_TOKENS, page_hashes


@dataclass(frozen=True, slots=True)
class PagesChange:
    """Pages that came (after ``parent``, 0: none) or went; ``cleared``: all others went first."""

    parent: int = 0
    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    cleared: bool = False


class PageNames:
    """The named blocks of one cache: no more than it has."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def stored(
        self,
        blocks: Sequence[int],
        parent: int | None,
        token_ids: Sequence[int],
        block_tokens: int,
        extra_keys: Sequence[Sequence[Any] | None] | None,
    ) -> PagesChange | None:
        """These blocks of ``block_tokens`` tokens follow each other, the first one ``parent``."""
        if parent is None:
            before, first = 0, _salt(extra_keys)
        else:
            known = self._pages.get(parent)
            before, first = (known[-1] if known else 0), None
        if not before and first is None:
            return None
        came: list[int] = []
        page = before
        for place, block in enumerate(blocks):
            tokens = token_ids[place * block_tokens : (place + 1) * block_tokens]
            names: tuple[int, ...] = ()
            if first is not None and place == 0:
                names, tokens, page = (first,), tokens[PAGE_TOKENS:], first
            names += page_hashes(tokens, page)
            page = names[-1]
            self._pages[block] = names
            came += names
        return PagesChange(before, tuple(came))

    def removed(self, blocks: Iterable[int]) -> PagesChange | None:
        """These blocks are no longer there."""
        gone = [page for block in blocks for page in self._pages.pop(block, ())]
        return PagesChange(removed=tuple(gone)) if gone else None

    def cleared(self) -> PagesChange:
        """Nothing is there any more."""
        self._pages.clear()
        return PagesChange(cleared=True)


def _salt(extra_keys: Sequence[Sequence[Any] | None] | None) -> int | None:
    """The name of the first page, among what else makes a block differ."""
    for key in (extra_keys[0] if extra_keys else None) or ():
        if isinstance(key, str) and len(key) == 16:
            try:
                return int(key, 16)
            except ValueError:
                continue
    return None
