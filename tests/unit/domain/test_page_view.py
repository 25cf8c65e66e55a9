"""A reader of page changes ends with what the engine has, whatever was lost on the way."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.domain.outcomes import Ask, Count, Outcome
from components.domain.page_book import NO_PAGES, PageBook
from components.domain.page_view import WAITING_MAX, PageViews
from components.domain.pages import pack_hashes, unpack_hashes
from schemas.engine import KvPagesChanged, ShowPages, ShowPagesReply

ENGINE = "decode-0"


def asked(outcomes: list[Outcome]) -> list[int]:
    """The offsets that were asked for."""
    questions = [o for o in outcomes if isinstance(o, Ask)]
    assert all(o.to == (ENGINE,) for o in questions)
    return [o.message.offset for o in questions if isinstance(o.message, ShowPages)]


def counted(outcomes: list[Outcome]) -> list[str]:
    return [o.name for o in outcomes if isinstance(o, Count)]


def state(views: PageViews) -> tuple[bool, set[int]]:
    """Whether it is behind, and what it knows."""
    return views.is_behind(ENGINE), set(views.pages_of(ENGINE))


def answer(views: PageViews, book: PageBook, outcomes: list[Outcome], now_s: float = 0.0) -> None:
    """Answer every question until there is none."""
    todo = list(outcomes)
    while todo:
        outcome = todo.pop(0)
        if isinstance(outcome, Ask):
            assert isinstance(outcome.message, ShowPages)
            todo += views.on_shown(book.show(outcome.message), now_s)


# The book


def test_an_answer_has_parents_before_children_even_if_they_came_again():
    book = PageBook(ENGINE, 1)
    book.change(0, (1, 2, 3))
    book.change(2, (4,))
    book.change(removed=(1,))
    book.change(0, (1,))
    reply = book.show(ShowPages())
    pages, parents = unpack_hashes(reply.pages), unpack_hashes(reply.parents)
    assert dict(zip(pages, parents, strict=True)) == {1: 0, 2: 1, 3: 2, 4: 2}
    assert all(parent not in pages[place:] for place, parent in enumerate(parents))
    assert (reply.change, reply.total) == (6, 4)


def test_pages_that_name_each_other_as_parents_are_shown_all_the_same():
    book = PageBook(ENGINE, 1)
    book.change(2, (1,))
    book.change(1, (2,))
    assert sorted(unpack_hashes(book.show(ShowPages()).pages)) == [1, 2]


def test_the_parts_of_an_answer_belong_to_one_moment():
    book = PageBook(ENGINE, 1, reply_pages_max=2)
    book.change(0, (1, 2, 3))
    first = book.show(ShowPages())
    book.change(removed=(3,))
    assert book.show(ShowPages(offset=NO_PAGES)).change == 4
    rest = book.show(ShowPages(offset=2))
    assert (first.change, rest.change, rest.total) == (3, 3, 3)
    assert unpack_hashes(first.pages + rest.pages) == (1, 2, 3)
    assert unpack_hashes(book.show(ShowPages()).pages) == (1, 2)


# The view


def test_changes_in_order_need_no_question():
    book, views = PageBook(ENGINE, 1), PageViews()
    assert views.on_changed(book.change(0, (1, 2, 3)), 0.0) == []
    assert views.on_changed(book.change(removed=(3,)), 0.0) == []
    assert views.holds(ENGINE, (1, 2, 3)) == 2
    assert views.holds(ENGINE, (1, 2)) == 2
    assert views.holds(ENGINE, (9, 1)) == 0
    assert not views.is_behind(ENGINE)
    assert views.on_changed(book.change(0, (7,), cleared=True), 0.0) == []
    assert (state(views), len(views)) == ((False, {7}), 1)


def test_a_gap_is_asked_about_once_and_the_answer_closes_it():
    book, views = PageBook(ENGINE, 1), PageViews()
    views.on_changed(book.change(0, (1, 2)), 0.0)
    book.change(2, (3,))  # lost
    outcomes = views.on_changed(book.change(3, (4,)), 0.0)
    assert (asked(outcomes), counted(outcomes)) == ([0], ["page_gaps_total"])
    assert asked(views.on_changed(book.change(removed=(1,)), 0.0)) == []
    assert views.is_behind(ENGINE)
    assert views.pages_of(ENGINE) == {1, 2}, "what it knew is still a hint"
    answer(views, book, outcomes)
    assert state(views) == (False, {2, 3, 4})


def test_a_change_that_was_only_late_closes_the_gap_and_the_answer_is_not_needed():
    book, views = PageBook(ENGINE, 1), PageViews()
    late, early = book.change(0, (1,)), book.change(1, (2,))
    outcomes = views.on_changed(early, 0.0)
    reply = book.show(ShowPages())
    assert asked(outcomes) == [0]
    views.on_changed(late, 0.0)
    assert state(views) == (False, {1, 2})
    outdated = ["page_answers_outdated_total"]
    assert counted(views.on_shown(reply, 0.0)) == outdated
    views.on_changed(book.change(removed=(1,)), 0.0)
    book.change(2, (3,))  # lost
    views.on_changed(book.change(3, (4,)), 0.0)
    assert counted(views.on_shown(reply, 0.0)) == outdated, "older than what is known"
    assert state(views) == (True, {2})


def test_what_is_newer_than_the_answer_is_applied_on_top_of_it():
    book, views = PageBook(ENGINE, 1), PageViews()
    book.change(0, (1, 2))
    outcomes = views.on_changed(book.change(removed=(2,)), 0.0)
    reply = book.show(ShowPages())
    views.on_changed(book.change(1, (5,)), 0.0)
    assert asked(outcomes) == [0]
    views.on_shown(reply, 0.0)
    assert state(views) == (False, {1, 5})


def test_an_answer_that_does_not_close_the_gap_is_followed_by_another_question_in_time():
    book, views = PageBook(ENGINE, 1), PageViews(answer_s=1.0)
    book.change(0, (1, 2))
    views.on_changed(book.change(removed=(2,)), 0.0)
    reply = book.show(ShowPages())
    book.change(1, (5,))  # lost as well
    views.on_changed(book.change(5, (6,)), 0.1)
    assert asked(views.on_shown(reply, 0.2)) == []
    assert views.pages_of(ENGINE) == {1}
    assert asked(views.on_tick(1.1)) == []
    outcomes = views.on_tick(1.2)
    assert asked(outcomes) == [0]
    answer(views, book, outcomes)
    assert state(views) == (False, {1, 5, 6})


def test_the_loss_of_the_last_change_is_found_when_the_engine_is_quiet():
    book, views = PageBook(ENGINE, 1), PageViews(quiet_s=10.0)
    views.on_changed(book.change(0, (1, 2)), 0.0)
    outcomes = views.on_tick(10.0)
    assert asked(outcomes) == [NO_PAGES]
    answer(views, book, outcomes, 10.0)
    book.change(removed=(2,))  # lost
    assert views.on_tick(19.9) == []
    answer(views, book, views.on_tick(20.0), 20.0)
    assert views.pages_of(ENGINE) == {1}


def test_an_engine_that_was_there_before_is_asked_for_all_it_has():
    book, views = PageBook(ENGINE, 5), PageViews()
    book.change(0, (1, 2))
    outcomes = views.follow(ENGINE, 5, 0.0)
    assert views.is_behind(ENGINE)
    answer(views, book, outcomes)
    assert state(views) == (False, {1, 2})
    assert views.follow(ENGINE, 5, 0.0) == []
    empty = PageViews()
    answer(empty, PageBook(ENGINE, 5), empty.follow(ENGINE, 5, 0.0))
    assert not empty.is_behind(ENGINE)


def test_an_answer_comes_in_parts_and_begins_again_after_another_reader_has():
    book, views = PageBook(ENGINE, 1, reply_pages_max=2), PageViews(answer_s=1.0)
    book.change(0, (1, 2, 3, 4, 5))
    outcomes = views.follow(ENGINE, 1, 0.0)
    outcomes = views.on_shown(book.show(ShowPages()), 0.0)
    assert asked(outcomes) == [2]
    book.change(5, (6,))
    book.show(ShowPages())  # the other reader
    outcomes = views.on_shown(book.show(ShowPages(offset=2)), 0.0)
    assert (asked(outcomes), counted(outcomes)) == ([], ["page_answers_broken_total"])
    answer(views, book, views.on_tick(1.0), 1.0)
    assert state(views) == (False, {1, 2, 3, 4, 5, 6})


def test_another_epoch_begins_empty_and_the_former_one_is_not_heard_any_more():
    old, new, views = PageBook(ENGINE, 1), PageBook(ENGINE, 2), PageViews()
    views.on_changed(old.change(0, (1, 2)), 0.0)
    late = old.change(2, (3,))
    views.on_changed(new.change(0, (7,)), 0.0)
    assert (state(views), len(views)) == ((False, {7}), 1)
    assert counted(views.on_changed(late, 0.0)) == ["page_changes_outdated_total"]
    reply = old.show(ShowPages())
    assert counted(views.on_shown(reply, 0.0)) == ["page_answers_outdated_total"]
    views.follow(ENGINE, 3, 0.0)
    assert views.pages_of(ENGINE) == frozenset()
    views.forget(ENGINE)
    views.forget(ENGINE)
    assert (views.is_behind(ENGINE), views.holds(ENGINE, (7,)), len(views)) == (True, 0, 0)


def test_what_is_malformed_changes_nothing_and_is_asked_for_again():
    book, views = PageBook(ENGINE, 1), PageViews(answer_s=1.0)
    whole = book.change(0, (1, 2))
    cut = whole.model_copy(update={"stored": b"123"})
    assert counted(views.on_changed(cut, 0.0)) == ["page_changes_malformed_total"]
    empty = whole.model_copy(update={"stored": b"", "first_change": 9})
    assert counted(views.on_changed(empty, 0.0)) == ["page_changes_outdated_total"]
    views.on_changed(book.change(removed=(1,)), 0.0)
    good = book.show(ShowPages())
    for bad in (
        {"pages": b"123"},
        {"pages": b"", "total": 5},
        {"offset": 7},
    ):
        outcomes = views.on_shown(good.model_copy(update=bad), 0.0)
        assert counted(outcomes) == ["page_answers_broken_total"]
    assert views.is_behind(ENGINE)
    answer(views, book, views.on_tick(1.0), 1.0)
    assert views.pages_of(ENGINE) == {2}


def test_a_change_that_is_half_in_an_answer_is_a_gap():
    book, views = PageBook(ENGINE, 1), PageViews()
    views.on_changed(book.change(0, (1, 2)), 0.0)
    half = KvPagesChanged(engine=ENGINE, engine_epoch=1, first_change=1, stored=pack_hashes((2, 3)))
    assert asked(views.on_changed(half, 0.0)) == [0]


def test_no_more_is_remembered_than_the_bounds_allow():
    views = PageViews(engines_max=2, pages_max=3)
    first, second = PageBook(ENGINE, 1), PageBook("decode-1", 1)
    views.on_changed(first.change(0, (1, 2)), 0.0)
    assert counted(views.on_changed(second.change(0, (1, 2)), 0.0)) == ["pages_left_out_total"]
    assert (views.holds("decode-1", (1, 2)), len(views)) == (1, 3)
    views.on_changed(second.change(removed=(1, 2)), 0.0)
    views.on_changed(first.change(2, (3,)), 0.0)
    assert views.holds(ENGINE, (1, 2, 3)) == 3
    third = PageBook("decode-2", 1)
    ignored = ["page_engines_ignored_total"]
    assert counted(views.on_changed(third.change(0, (1,)), 0.0)) == ignored
    assert counted(views.follow("decode-2", 1, 0.0)) == ignored
    views.forget("decode-1")
    assert counted(views.on_changed(third.change(1, (2,)), 0.0)) != ignored


def test_more_changes_than_may_wait_are_left_to_the_answer():
    book, views = PageBook(ENGINE, 1), PageViews()
    book.change(0, (1,))  # lost
    outcomes: list[Outcome] = []
    for page in range(2, WAITING_MAX + 4):
        outcomes += views.on_changed(book.change(0, (page,)), 0.0)
    assert counted(outcomes) == ["page_gaps_total", *["page_changes_dropped_total"] * 2]
    answer(views, book, outcomes)
    assert not views.is_behind(ENGINE)
    assert views.pages_of(ENGINE) == book.pages


class Wire:
    """Between an engine and its reader: what is on its way comes late, twice or never."""

    def __init__(self, random: Random, loss: float) -> None:
        self.random, self.loss = random, loss
        self.views = PageViews(answer_s=1.0, quiet_s=5.0)
        self.epoch = 0
        self.now_s = 0.0
        self.on_its_way: list[KvPagesChanged | ShowPages | ShowPagesReply] = []
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
        self.book = PageBook(ENGINE, self.epoch, reply_pages_max=3)

    def send(self, message: Any) -> None:
        if self.random.random() >= self.loss:
            self.on_its_way += [message] * self.random.choice((1, 1, 1, 2))

    def act(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Ask):
                self.send(outcome.message)

    def change(self) -> None:
        random, pages = self.random, sorted(self.book.pages)
        what = random.random()
        if what < 0.03:
            message = self.book.change(cleared=True)
        elif what < 0.4 and pages:
            message = self.book.change(removed=random.sample(pages, min(len(pages), 2)))
        else:
            parent = random.choice([0, *pages])
            message = self.book.change(parent, random.sample(range(1, 40), random.randint(1, 4)))
        self.send(message)

    def deliver(self, place: int = 0) -> None:
        message = self.on_its_way.pop(place)
        match message:
            case KvPagesChanged():
                self.act(self.views.on_changed(message, self.now_s))
            case ShowPages():
                self.send(self.book.show(message))
            case ShowPagesReply():
                self.act(self.views.on_shown(message, self.now_s))

    def pass_time(self, by_s: float) -> None:
        self.now_s += by_s
        self.act(self.views.on_tick(self.now_s))

    def settle(self) -> None:
        """Nothing is lost any more, and enough time passes."""
        self.loss = 0.0
        for _ in range(4):
            self.pass_time(5.0)
            for _ in range(10_000):
                if not self.on_its_way:
                    break
                self.deliver()
        assert not self.on_its_way, "questions without end"


@settings(max_examples=150, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.floats(0, 0.6),
    st.lists(
        st.sampled_from(["change", "change", "deliver", "deliver", "any", "time", "restart"]),
        max_size=120,
    ),
)
def test_after_loss_disorder_repetition_and_restarts_the_view_is_the_truth(
    random: Random, loss: float, steps: list[str]
):
    wire = Wire(random, loss)
    for step in steps:
        match step:
            case "change":
                wire.change()
            case "restart":
                if random.random() < 0.2:
                    wire.restart()
            case "time":
                wire.pass_time(0.6)
            case _ if wire.on_its_way:
                last = len(wire.on_its_way) - 1
                wire.deliver(random.randint(0, last) if step == "any" else 0)
    if not len(wire.book):
        wire.change()  # a life of which nothing was ever heard is nobody's to know
    wire.act(wire.views.follow(ENGINE, wire.epoch, wire.now_s))
    wire.settle()
    assert not wire.views.is_behind(ENGINE)
    assert wire.views.pages_of(ENGINE) == wire.book.pages
    assert len(wire.views) == len(wire.book)


@pytest.mark.parametrize("seed", range(3))
def test_without_loss_or_disorder_nothing_is_ever_asked(seed: int):
    wire = Wire(Random(seed), 0.0)
    for _ in range(200):
        wire.change()
        while wire.on_its_way:
            assert not isinstance(wire.on_its_way[0], ShowPages)
            wire.deliver()
        assert wire.views.pages_of(ENGINE) == wire.book.pages
