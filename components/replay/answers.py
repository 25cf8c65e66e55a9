"""Each question about the past, and how it is answered, from a server or from a bundle."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from bus.history import Stored
from components.replay.explain import Seen, explained
from components.replay.index import RequestIndex
from components.replay.indexer import STREAM, Indexer
from components.replay.instant import instant
from components.replay.past import Past, opened, read_between
from components.replay.reading import BadCursor, page
from components.replay.refused import Refused
from components.replay.rerun import BadPolicy, TooMuch, record, rerun
from schemas.past import (
    ExplainRequest,
    ExplainRequestReply,
    ReadPast,
    ReadPastReply,
    ReplayJournal,
    ReplayJournalReply,
    ShowInstant,
    ShowInstantReply,
)
from schemas.request import RequestEventsBatched

#: Messages behind the index that are looked through as well: what was written just now.
TAIL_MAX: Final = 2_000


class Answers:
    """Without ``indexer`` and ``index`` (a bundle, or no service) all of REQUESTS is looked at."""

    def __init__(
        self, past: Past, index: RequestIndex | None = None, indexer: Indexer | None = None
    ) -> None:
        self._past = past
        self._index = index
        self._indexer = indexer

    async def instant(self, asked: ShowInstant) -> ShowInstantReply:
        return await instant(self._past, asked.at_ms)

    async def read(self, asked: ReadPast) -> ReadPastReply:
        """Raises ``Refused``."""
        try:
            return await page(self._past, asked)
        except BadCursor as error:
            raise Refused("bad_cursor", str(error)) from error

    async def replay(self, asked: ReplayJournal) -> ReplayJournalReply:
        """Raises ``Refused``."""
        try:
            recording = await record(self._past, asked.from_ms, asked.to_ms)
            # In a thread: the process goes on to say that it lives.
            return await asyncio.to_thread(rerun, recording, asked.order, asked.route)
        except BadPolicy as error:
            raise Refused("bad_policy", str(error)) from error
        except TooMuch as error:
            raise Refused("too_much", str(error)) from error

    async def explain(self, asked: ExplainRequest) -> ExplainRequestReply:
        seen = [s async for s in self._steps(asked.request_id)]
        return explained(asked.request_id, seen, asked.tenant)

    async def _steps(self, request_id: str) -> AsyncIterator[Seen]:
        if self._index is None or self._indexer is None:
            async for seen in self._scan(request_id, 1):
                yield seen
            return
        behind = self._indexer.last_seq + 1
        for seq in self._index.places(request_id):
            for seen in await self._at(request_id, seq):
                yield seen
        last_seq = (await self._past.state(STREAM)).last_seq
        if last_seq - behind < TAIL_MAX:
            async for seen in self._scan(request_id, behind):
                yield seen

    async def _at(self, request_id: str, seq: int) -> Sequence[Seen]:
        stored = await self._past.first_from(STREAM, seq)
        return _of(request_id, stored) if stored and stored.seq == seq else ()

    async def _scan(self, request_id: str, first_seq: int) -> AsyncIterator[Seen]:
        state = await self._past.state(STREAM)
        async for stored in read_between(self._past, STREAM, first_seq, state.last_seq):
            for seen in _of(request_id, stored):
                yield seen


def _of(request_id: str, stored: Stored) -> list[Seen]:
    """The steps of one request in one stored batch."""
    if request_id.encode() not in stored.data:  # far cheaper than to decode what is not asked for
        return []
    decoded = opened(stored)
    if decoded is None or not isinstance(decoded.message, RequestEventsBatched):
        return []
    return [(decoded.source, e) for e in decoded.message.events if e.request_id == request_id]
