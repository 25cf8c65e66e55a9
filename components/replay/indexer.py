"""Follows REQUESTS and keeps the index of requests up to date."""

import asyncio
from typing import Final

from bus.errors import StreamUnavailable
from bus.history import History
from components.replay.index import RequestIndex, ids_in

STREAM: Final = "REQUESTS"
#: Messages between which others get their turn.
TURN: Final = 64
RETRY_S: Final = 1.0


class Indexer:
    """``last_seq``: the newest message that is in the index; 0 before the first."""

    def __init__(self, history: History, index: RequestIndex) -> None:
        self._history = history
        self._index = index
        self.last_seq = 0

    async def run(self) -> None:
        """For ever: from the oldest message that is kept, to what comes."""
        start_seq = await self._first_seq()
        count = 0
        async for stored in self._history.follow(STREAM, start_seq=start_seq):
            self._index.add(stored.seq, ids_in(stored.data))
            self.last_seq = stored.seq
            count += 1
            if count % TURN == 0:
                await asyncio.sleep(0)

    async def _first_seq(self) -> int:
        while True:
            try:
                return max(1, (await self._history.state(STREAM)).first_seq)
            except StreamUnavailable:
                await asyncio.sleep(RETRY_S)
