"""What other registries write: read again when they say so, and whole when it may have been missed.

An event says that a record changed, never how: the bucket alone is right. A store with replicas may
answer a moment late, so a record is read until it is as new as the event says.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from bus.records import Record
from components.host.host import Host
from components.registry.loading import until_read

#: Names that wait to be read; beyond that everything is read.
NAMES_MAX: Final = 1024
TRIES: Final = 5
TRY_AGAIN_S: Final = 0.2


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
        self._names: dict[str, int | None] = {}
        self._everything = True
        self._news = asyncio.Event()

    def start(self) -> None:
        """Read everything as soon as the store answers, then whatever is asked for."""
        _ = self._host.tasks.spawn(f"look at {self._what}", self._run())

    def at(self, name: str, revision: int | None) -> None:
        """Somebody wrote this record, or removed it."""
        if len(self._names) < NAMES_MAX:
            self._names[name] = revision
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
            self._names.clear()
            await self._read_all()
            self._everything = False
        while self._names:
            name, revision = next(iter(self._names.items()))
            await self._look(name, revision)
            if self._names.get(name, revision) == revision:
                self._names.pop(name, None)

    async def _look(self, name: str, revision: int | None) -> None:
        for _ in range(TRIES):
            if await self._read(name, revision):
                return
            await self._host.clock.sleep(TRY_AGAIN_S)


def is_as_new(record: Record | None, known: int, revision: int | None) -> bool:
    """Is what was read as new as ``revision`` (None: as the removal of the ``known`` one)?"""
    if record is None:
        return not revision
    return record.revision > known if revision is None else record.revision >= revision
