"""A whole that comes in pages is read to its end, and never for ever."""

from dataclasses import dataclass

import pytest

from bus.errors import TooManyPages
from bus.paging import PAGES_MAX, read_pages


@dataclass(frozen=True)
class Page:
    keys: tuple[str, ...]
    more: bool


class Shelf:
    """Answers page by page; ``asked`` are the keys after which it was asked."""

    def __init__(self, count, size, *, endless=False):
        self.names = [f"n{number:05}" for number in range(count)]
        self.size, self.endless = size, endless
        self.asked = []

    async def page(self, after):
        self.asked.append(after)
        names = [name for name in self.names if name > after]
        return Page(tuple(names[: self.size]), self.endless or len(names) > self.size)


async def read(shelf):
    return [key for page in await read_pages(shelf.page, lambda p: p.keys) for key in page.keys]


@pytest.mark.parametrize(("count", "asked"), [(0, 1), (1, 1), (10, 1), (11, 2), (30, 3), (31, 4)])
async def test_all_of_it_is_read_once_and_in_order(count, asked):
    shelf = Shelf(count, 10)
    assert await read(shelf) == shelf.names
    assert len(shelf.asked) == asked


async def test_as_many_pages_as_may_be_are_read_and_one_more_is_refused():
    assert len(await read(Shelf(PAGES_MAX * 500, 500))) == 32_000
    shelf = Shelf(PAGES_MAX * 500 + 1, 500)
    with pytest.raises(TooManyPages, match="one at a time"):
        await read(shelf)
    assert len(shelf.asked) == PAGES_MAX


@pytest.mark.parametrize("count", [0, 25])
async def test_who_promises_more_and_brings_nothing_new_is_asked_no_further(count):
    shelf = Shelf(count, 10, endless=True)
    assert await read(shelf) == shelf.names
    assert len(shelf.asked) == count // 10 + 1 + bool(count)


async def test_a_page_that_comes_twice_is_counted_once():
    async def stuck(_after):
        return Page(("a", "b"), more=True)

    assert await read_pages(stuck, lambda p: p.keys) == [Page(("a", "b"), more=True)]


async def test_the_first_page_is_there_even_when_it_is_empty():
    # Its sums are read where no engine is.
    assert await read_pages(Shelf(0, 10).page, lambda p: p.keys) == [Page((), more=False)]
