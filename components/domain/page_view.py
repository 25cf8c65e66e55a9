"""What the prefix caches of engines hold, as a reader of ``KvPagesChanged`` knows it. Pure.

How to think about it. An engine numbers its changes, so a reader knows at any time which number
comes next. As long as that one comes, the view follows. When another one comes, the view is
*behind*: what came too early waits aside, and the engine is asked for all its pages
(``ShowPages``). The answer names the change after which it is true; what waits and is newer is
applied on top, what is older is dropped. A missing change that was only late closes the gap as
well. So loss, disorder and repetition end in the same state.

The loss of the very last change shows in nothing that follows. An engine that has been quiet for
``quiet_s`` is therefore asked how far it is, which costs no pages.

A view that is behind still answers with what it knew: these are hints for choosing an engine, and
the engine itself finds out what it has. Another epoch of an engine begins with an empty cache.

Everything is bounded: engines, pages in all, messages that wait per engine. What does not fit is
not remembered and is counted; a page that is not remembered only makes its engine less attractive.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from components.domain.outcomes import Ask, Count, Outcome
from components.domain.page_book import NO_PAGES, changes_in
from components.domain.pages import HASH_BYTES, unpack_hashes
from schemas.engine import KvPagesChanged, ShowPages, ShowPagesReply

#: Messages of one engine that may wait for those before them.
WAITING_MAX: Final = 256


@dataclass(slots=True)
class _View:
    """One life of one engine.

    Changes before ``next_change`` are in ``pages``, those before ``seen_change`` are known to have
    happened. ``unsure``: perhaps there were some of which nothing was heard.
    """

    epoch: int
    heard_s: float
    unsure: bool = False
    next_change: int = 0
    seen_change: int = 0
    pages: set[int] = field(default_factory=set)
    waiting: dict[int, KvPagesChanged] = field(default_factory=dict)
    #: Since when an answer is awaited.
    asked_s: float | None = None
    #: Of an answer in several parts: its change, and the parts so far.
    shown_change: int = 0
    shown: bytearray = field(default_factory=bytearray)

    @property
    def is_behind(self) -> bool:
        return self.unsure or self.next_change < self.seen_change


@dataclass(slots=True)
class PageViews:
    """The caches of all engines. Questions come out as ``Ask``; the answer goes to ``on_shown``.

    ``answer_s`` is how long an answer may take before the question is repeated.
    """

    engines_max: int = 1024
    pages_max: int = 2_000_000
    answer_s: float = 1.0
    quiet_s: float = 10.0
    _views: dict[str, _View] = field(default_factory=dict)
    _total: int = 0

    def __len__(self) -> int:
        """Pages that are remembered, over all engines."""
        return self._total

    # What is known

    def holds(self, engine: str, pages: Sequence[int]) -> int:
        """How many of these pages, from the first one on, the engine has; 0 if it is unknown."""
        view = self._views.get(engine)
        if view is None:
            return 0
        return next((n for n, page in enumerate(pages) if page not in view.pages), len(pages))

    def pages_of(self, engine: str) -> frozenset[int]:
        """All pages of an engine that are remembered."""
        view = self._views.get(engine)
        return frozenset(view.pages) if view else frozenset()

    def is_behind(self, engine: str) -> bool:
        """Is anything known to be missing, or the engine unknown?"""
        view = self._views.get(engine)
        return view is None or view.is_behind

    # What comes in

    def follow(self, engine: str, epoch: int, now_s: float) -> list[Outcome]:
        """An engine is there whose changes were perhaps not heard from the first one on."""
        known = self._views.get(engine)
        if known is not None and known.epoch >= epoch:
            return []
        view = self._begin(engine, epoch, now_s)
        if view is None:
            return [Count("page_engines_ignored_total")]
        view.unsure = True
        return self._mend(engine, view, now_s)

    def forget(self, engine: str) -> None:
        """The engine is gone, and its cache with it."""
        view = self._views.pop(engine, None)
        if view is not None:
            self._total -= len(view.pages)

    def on_changed(self, message: KvPagesChanged, now_s: float) -> list[Outcome]:
        """Take a change, whether or not it is the next one."""
        engine = message.engine
        view = self._views.get(engine)
        if view is None or message.engine_epoch > view.epoch:
            view = self._begin(engine, message.engine_epoch, now_s)
        if view is None:
            return [Count("page_engines_ignored_total")]
        if message.engine_epoch < view.epoch:
            return [Count("page_changes_outdated_total")]
        view.heard_s = now_s
        try:
            count = changes_in(message)
        except ValueError:
            return [Count("page_changes_malformed_total")]
        first, end = message.first_change, message.first_change + count
        if not count or end <= view.next_change:
            return [Count("page_changes_outdated_total")]
        view.seen_change = max(view.seen_change, end)
        outcomes: list[Outcome] = []
        if first == view.next_change or len(view.waiting) < WAITING_MAX:
            view.waiting[first] = message
            outcomes += self._catch_up(view)
        else:
            outcomes.append(Count("page_changes_dropped_total"))  # an answer will contain it
        return outcomes + self._mend(engine, view, now_s)

    def on_shown(self, reply: ShowPagesReply, now_s: float) -> list[Outcome]:
        """Take an answer, or a part of one."""
        engine = reply.engine
        view = self._views.get(engine)
        if view is None or reply.engine_epoch != view.epoch:
            return [Count("page_answers_outdated_total")]
        view.heard_s = now_s
        view.seen_change = max(view.seen_change, reply.change)
        if reply.offset == NO_PAGES:
            return self._mend(engine, view, now_s)
        if reply.change < view.next_change or not view.is_behind:
            return [Count("page_answers_outdated_total")]
        return self._on_part(reply, view, now_s)

    def on_tick(self, now_s: float) -> list[Outcome]:
        """Questions without an answer are asked again; those long quiet, whether they went on."""
        outcomes: list[Outcome] = []
        for engine, view in self._views.items():
            if view.is_behind:
                if view.asked_s is None or now_s - view.asked_s >= self.answer_s:
                    outcomes += self._ask(engine, view, 0, now_s)
            elif now_s - view.heard_s >= self.quiet_s:
                view.heard_s = now_s
                outcomes.append(Ask(ShowPages(offset=NO_PAGES), (engine,)))
        return outcomes

    # Inside

    def _begin(self, engine: str, epoch: int, now_s: float) -> _View | None:
        """A new life, whose cache is empty; None when there are too many engines."""
        self.forget(engine)
        if len(self._views) >= self.engines_max:
            return None
        view = self._views[engine] = _View(epoch, now_s)
        return view

    def _mend(self, engine: str, view: _View, now_s: float) -> list[Outcome]:
        """Ask for the pages, once, if something is missing; ``on_tick`` repeats it."""
        if not view.is_behind:
            view.asked_s = None
            return []
        if view.asked_s is not None:
            return []
        return [Count("page_gaps_total"), *self._ask(engine, view, 0, now_s)]

    def _ask(self, engine: str, view: _View, offset: int, now_s: float) -> list[Outcome]:
        view.asked_s = now_s
        return [Ask(ShowPages(offset=offset), (engine,))]

    def _on_part(self, reply: ShowPagesReply, view: _View, now_s: float) -> list[Outcome]:
        """The next part of an answer; any other one is left, and the question comes again."""
        if reply.offset == 0:
            view.shown_change, view.shown = reply.change, bytearray()
        expected = (view.shown_change, len(view.shown) // HASH_BYTES)
        if len(reply.pages) % HASH_BYTES or (reply.change, reply.offset) != expected:
            return [Count("page_answers_broken_total")]  # another reader has begun, most likely
        view.shown += reply.pages
        here = len(view.shown) // HASH_BYTES
        if here >= min(reply.total, self.pages_max):
            return self._on_whole(view, now_s)
        if not reply.pages:
            return [Count("page_answers_broken_total")]
        return self._ask(reply.engine, view, here, now_s)

    def _on_whole(self, view: _View, now_s: float) -> list[Outcome]:
        """All parts are here: they are true after ``shown_change``."""
        pages, view.shown = unpack_hashes(bytes(view.shown)), bytearray()
        self._total -= len(view.pages)
        view.pages.clear()
        outcomes = self._add(view, pages)
        view.unsure, view.next_change = False, view.shown_change
        outcomes += self._catch_up(view)
        # If that was not enough, no next question before its time: the engine may change quickly.
        view.asked_s = now_s if view.is_behind else None
        return outcomes

    def _catch_up(self, view: _View) -> list[Outcome]:
        """Apply what waits and is next; drop what is older."""
        outcomes: list[Outcome] = []
        for first in sorted(view.waiting):
            if first > view.next_change:
                break
            message = view.waiting.pop(first)
            if first == view.next_change:
                outcomes += self._apply(view, message)
                view.unsure, view.next_change = False, first + changes_in(message)
        return outcomes

    def _apply(self, view: _View, message: KvPagesChanged) -> list[Outcome]:
        before = len(view.pages)
        if message.cleared:
            view.pages.clear()
        view.pages.difference_update(unpack_hashes(message.removed))
        self._total += len(view.pages) - before
        return self._add(view, unpack_hashes(message.stored))

    def _add(self, view: _View, pages: Iterable[int]) -> list[Outcome]:
        left_out = 0
        for page in pages:
            if page in view.pages:
                continue
            if self._total >= self.pages_max:
                left_out += 1
            else:
                view.pages.add(page)
                self._total += 1
        return [Count("pages_left_out_total", left_out)] if left_out else []
