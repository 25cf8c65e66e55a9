"""What happened between two instants, in the order of time, in words: whole or page by page.

Streams are merged by the writers' clocks. Within one stream the server's order stands, so a page
ends at a place in each stream, and the next one goes on from there.
"""

import heapq
import json
from collections.abc import AsyncIterator, Sequence
from typing import Final

from bus.history import Stored
from components.replay.describe import told
from components.replay.past import KEPT, Past, place_of, read_between, time_of
from schemas.past import Happened, ReadPast, ReadPastReply

#: Characters of one line that an answer carries.
TEXT_MAX: Final = 600


class BadCursor(ValueError):
    """A cursor that no answer of ours gave."""


async def merged(
    past: Past, places: dict[str, tuple[int, int]]
) -> AsyncIterator[tuple[int, str, Stored]]:
    """``(written at ms, stream, message)`` of each stream's places first..last, by time.

    Holds one message per stream.
    """
    streams = {s: read_between(past, s, first, last) for s, (first, last) in places.items()}
    heads: list[tuple[int, int, str, Stored]] = []
    for rank, (stream, messages) in enumerate(streams.items()):
        await _push(heads, rank, stream, messages)
    while heads:
        at_ms, rank, stream, stored = heapq.heappop(heads)
        yield at_ms, stream, stored
        await _push(heads, rank, stream, streams[stream])


async def _push(
    heads: list[tuple[int, int, str, Stored]],
    rank: int,
    stream: str,
    messages: AsyncIterator[Stored],
) -> None:
    stored = await anext(messages, None)
    if stored is not None:
        heapq.heappush(heads, (time_of(stored), rank, stream, stored))


async def places_between(
    past: Past, streams: Sequence[str], from_ms: int, to_ms: int
) -> dict[str, tuple[int, int]]:
    """First and last place of each stream's messages written from ``from_ms`` to ``to_ms``."""
    return {
        stream: (
            await place_of(past, stream, from_ms - 1) + 1,
            await place_of(past, stream, to_ms),
        )
        for stream in streams
    }


def happened(at_ms: int, stream: str, stored: Stored, request_id: str | None) -> list[Happened]:
    """The lines of one message; with a request's id only those about it."""
    return [
        Happened(
            at_ms=at_ms,
            stream=stream,
            seq=stored.seq,
            source=line.source,
            what=line.what,
            text=line.text[:TEXT_MAX],
        )
        for line in told(stored.subject, stored.data)
        if request_id is None or line.request_id == request_id
    ]


async def page(past: Past, asked: ReadPast) -> ReadPastReply:
    """One page; raises ``BadCursor``."""
    streams = [s for s in KEPT if s in asked.streams] if asked.streams else list(KEPT)
    if asked.cursor:
        places = _from_cursor(asked.cursor)
    else:
        places = await places_between(past, streams, asked.from_ms, asked.to_ms)
    events: list[Happened] = []
    async for at_ms, stream, stored in merged(past, places):
        if len(events) >= asked.limit:
            return ReadPastReply(events=tuple(events), cursor=json.dumps(places))
        events += happened(at_ms, stream, stored, asked.request_id)
        places[stream] = (stored.seq + 1, places[stream][1])
    return ReadPastReply(events=tuple(events))


def _from_cursor(cursor: str) -> dict[str, tuple[int, int]]:
    try:
        places = {str(k): (int(v[0]), int(v[1])) for k, v in json.loads(cursor).items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        raise BadCursor("this cursor is none of ours: begin again without one") from None
    if not set(places) <= set(KEPT):
        raise BadCursor("this cursor is none of ours: begin again without one")
    return places
