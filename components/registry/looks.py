"""What other registries write: read again when they say so, and whole when it may have been missed.

An event says that a record changed, never how: the bucket alone is right. A store with replicas may
answer a moment late, so a record is read until it is as new as the event says.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bus.errors import StreamUnavailable
from components.host.host import Host
from components.registry.loading import until_read

#: Names that wait to be read; beyond that everything is read.
NAMES_MAX: Final = 1024
#: How often a record is read in a row until it is as new as was told, and with what pause.
TRIES: Final = 5
TRY_AGAIN_S: Final = 0.2
#: After that it waits this long for the next row; after so many tries everything is read instead.
LATE_S: Final = 5.0
TRIES_MAX: Final = 12 * TRIES
#: Records that are not known here: read at a time, with how many who ask, and for how long.
FIRST_MAX: Final = 16
ASKED_MAX: Final = 64
FIRST_S: Final = 1.0


@dataclass(slots=True)
class _News:
    """What was told of one record; ``revision`` None: it was removed."""

    revision: int | None
    tries: int = 0


class Looks:
    """One bucket of one registry; reads one thing at a time.

    ``read_all`` reads every record. ``read`` reads one and returns whether it is at least as new as
    the revision (None: as its removal). Both raise ``StreamUnavailable``.
    """

    def __init__(
        self,
        host: Host,
        what: str,
        read_all: Callable[[], Awaitable[None]],
        read: Callable[[str, int | None], Awaitable[bool]],
    ) -> None:
        self._host = host
        self._what = what
        self._read_all = read_all
        self._read = read
        self._names: dict[str, _News] = {}
        self._late: dict[str, _News] = {}
        self._everything = True
        self._news = asyncio.Event()

    def start(self) -> None:
        """Read everything as soon as the store answers, then whatever is asked for."""
        _ = self._host.tasks.spawn(f"look at {self._what}", self._run())
        self._host.tasks.every(f"look again at {self._what}", LATE_S, self._look_again)

    def at(self, name: str, revision: int | None) -> None:
        """Somebody wrote this record, or removed it."""
        if len(self._names) + len(self._late) < NAMES_MAX:
            self._late.pop(name, None)
            self._names[name] = _News(revision)
            self._news.set()
        else:
            self.at_all()

    def at_all(self) -> None:
        """We may have missed something."""
        self._everything = True
        self._news.set()

    async def _run(self) -> None:
        while True:
            await until_read(self._host, self._what, self._catch_up)
            await self._news.wait()
            self._news.clear()

    async def _catch_up(self) -> None:
        if self._everything:
            await self._read_everything()
        while self._names:
            for name, news in list(self._names.items()):
                await self._look(name, news)
            if self._names:
                await self._host.clock.sleep(TRY_AGAIN_S)

    async def _read_everything(self) -> None:
        """What is told meanwhile is looked at after it: this reading may be past it already."""
        self._everything = False
        try:
            await self._read_all()
        except BaseException:
            self._everything = True
            raise

    async def _look(self, name: str, news: _News) -> None:
        found = await self._read(name, news.revision)
        if self._names.get(name) is not news:
            return  # something newer was told meanwhile
        news.tries += 1
        if found or news.tries % TRIES == 0:
            del self._names[name]
        if found or news.tries % TRIES:
            return
        self._host.counters.add("looks_late_total")
        if news.tries < TRIES_MAX:
            self._late[name] = news
        else:  # no such revision comes any more: take what there is
            self.at_all()

    def _look_again(self) -> None:
        """At what was not as new as was told; a store with replicas may be long behind."""
        if self._late:
            self._names.update(self._late)
            self._late.clear()
            self._news.set()


class FirstLooks:
    """Reads a record that is not known here before it is said that there is none.

    Another registry may have written it a moment ago. Anybody can ask for what there is not, so few
    are read at a time, each once for all who ask, and the others are told what is known.
    """

    def __init__(self, host: Host, what: str, read: Callable[[str], Awaitable[None]]) -> None:
        """``read`` reads one record and may raise ``StreamUnavailable``."""
        self._host = host
        self._what = what
        self._read = read
        self._asked: dict[str, list[Callable[[], None]]] = {}

    def then(self, name: str, answer: Callable[[], None]) -> None:
        """Call ``answer`` once the record was read, or could not be; at once when it is too much.

        At most ``FIRST_MAX`` records are read at a time, each for ``ASKED_MAX`` who ask at most.
        """
        waiting = self._asked.get(name)
        if waiting is None and len(self._asked) < FIRST_MAX:
            self._asked[name] = [answer]
            _ = self._host.tasks.spawn(f"first look at {self._what}", self._look(name))
        elif waiting is not None and len(waiting) < ASKED_MAX:
            waiting.append(answer)
        else:
            self._host.counters.add("looks_left_out_total")
            answer()

    async def _look(self, name: str) -> None:
        try:
            with contextlib.suppress(StreamUnavailable, TimeoutError):
                async with asyncio.timeout(FIRST_S):
                    await self._read(name)
        finally:
            waiting = self._asked.pop(name)
        for answer in waiting:
            answer()
