"""What one engine's prefix cache holds, as the engine's own side knows it: numbers and answers.

Each change gets the next number (``KvPagesChanged.first_change``), so whoever reads the changes
knows which comes next and notices what he missed. He then asks for the pages (``ShowPages``) and
goes on from the number that stands in the answer; ``page_view.py`` is that reader.
"""

from collections.abc import Sequence
from typing import Final

from components.domain.pages import pack_hashes, unpack_hashes
from schemas.engine import KvPagesChanged, ShowPages, ShowPagesReply

#: Pages in one answer, 16 bytes each with its parent: 2 MB of the 8 MB of a message.
REPLY_PAGES_MAX: Final = 131_072

#: An offset behind every page: asks for the number of the last change and for no page.
NO_PAGES: Final = 2**32 - 1


def changes_in(message: KvPagesChanged) -> int:
    """How many numbers a message takes up.

    They apply in this order: ``cleared``, ``removed``, ``stored``. Raises ValueError when its
    pages are not a whole number of hashes.
    """
    stored, removed = unpack_hashes(message.stored), unpack_hashes(message.removed)
    return len(stored) + len(removed) + message.cleared


class PageBook:
    """The pages of ``engine`` in its life ``epoch``; no more of them than its cache holds.

    A set with parents: a page that comes again or goes twice is counted as a change all the same.
    """

    def __init__(self, engine: str, epoch: int, *, reply_pages_max: int = REPLY_PAGES_MAX) -> None:
        self._engine = engine
        self._epoch = epoch
        self._reply_pages_max = reply_pages_max
        self._parents: dict[int, int] = {}
        self._next_change = 0
        # What the last reader who began was shown: he gets the rest of just that.
        self._shown: tuple[int, tuple[int, ...], tuple[int, ...]] = (0, (), ())

    def __len__(self) -> int:
        return len(self._parents)

    @property
    def pages(self) -> frozenset[int]:
        """The pages that are there now."""
        return frozenset(self._parents)

    def change(
        self,
        parent: int = 0,
        stored: Sequence[int] = (),
        removed: Sequence[int] = (),
        *,
        cleared: bool = False,
    ) -> KvPagesChanged:
        """Take a change in; the message that tells of it. ``stored`` follow ``parent`` in turn."""
        if cleared:
            self._parents.clear()
        for page in removed:
            self._parents.pop(page, None)
        before = parent
        for page in stored:
            self._parents[page] = before
            before = page
        message = KvPagesChanged(
            engine=self._engine,
            engine_epoch=self._epoch,
            first_change=self._next_change,
            parent=parent,
            stored=pack_hashes(stored),
            removed=pack_hashes(removed),
            cleared=cleared,
        )
        self._next_change += len(stored) + len(removed) + cleared
        return message

    def show(self, question: ShowPages) -> ShowPagesReply:
        """The pages from ``offset`` on, as many as fit into a message.

        Offset 0 begins: what follows it belongs to the same moment, however the cache goes on,
        until another reader begins. ``NO_PAGES`` disturbs nobody.
        """
        if question.offset == NO_PAGES:
            return self._reply(NO_PAGES, self._next_change, len(self._parents), (), ())
        if question.offset == 0:
            self._shown = (self._next_change, *self._in_order())
        change, pages, parents = self._shown
        part = slice(question.offset, question.offset + self._reply_pages_max)
        return self._reply(question.offset, change, len(pages), pages[part], parents[part])

    def _reply(
        self, offset: int, change: int, total: int, pages: Sequence[int], parents: Sequence[int]
    ) -> ShowPagesReply:
        return ShowPagesReply(
            engine=self._engine,
            engine_epoch=self._epoch,
            change=change,
            total=total,
            offset=offset,
            pages=pack_hashes(pages),
            parents=pack_hashes(parents),
        )

    def _in_order(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Pages and their parents; a parent that went and came again may stand behind its child."""
        parents, ordered = self._parents, dict[int, None]()
        for page in parents:
            chain, above = dict[int, None](), page
            while above in parents and above not in ordered and above not in chain:
                chain[above] = None
                above = parents[above]
            ordered.update(dict.fromkeys(reversed(chain)))
        return tuple(ordered), tuple(parents[page] for page in ordered)
