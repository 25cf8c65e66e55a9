"""Answers that come in pages, in the order of their keys: asked for until no more follows."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from bus.errors import TooManyPages

#: Of 500 nodes or keys each, up to 32,000; of 200 of our own engines, up to 12,800.
PAGES_MAX: Final = 64


class Page(Protocol):
    """A part of a whole; ``more`` follows its last key."""

    @property
    def more(self) -> bool: ...


P = TypeVar("P", bound=Page)


async def read_pages(
    ask: Callable[[str], Awaitable[P]], keys: Callable[[P], Sequence[str]]
) -> list[P]:
    """All pages, at least one.

    ``ask`` gets the page after a key ("" begins), ``keys`` are those of a page, rising. A later
    page that brings no further key is dropped and ends it, whatever it says of more. Raises
    ``TooManyPages`` when more follows the last page that is asked for, so that nobody takes a part
    for the whole; and whatever ``ask`` raises.
    """
    pages: list[P] = []
    after = ""
    while len(pages) < PAGES_MAX:
        page = await ask(after)
        reached = max(keys(page), default="")
        if pages and reached <= after:
            return pages
        pages.append(page)
        if not page.more or reached <= after:
            return pages
        after = reached
    raise TooManyPages(f"more than {PAGES_MAX} pages: ask for them one at a time, or for fewer")
