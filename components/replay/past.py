"""Where the past is read from: a server that keeps it, or a bundle that somebody exported.

Everything else in this package works on this promise and does not know the difference. A place in
a stream is its sequence; an instant is the payload's own wall clock. Messages of one stream come
from many hosts, so their clocks disagree by their skew: what was written around the instant may
fall on either side of it.
"""

from collections.abc import AsyncIterator
from typing import Final, Protocol

from bus.codec import Decoded, decode
from bus.errors import MalformedMessage
from bus.history import Stored, StreamState
from bus.streams import BY_NAME
from schemas.engine import EngineStatesReceived
from schemas.message import Message
from schemas.request import RequestEventsBatched

#: What the state of a fleet is rebuilt from; frames and bodies are no part of it.
KEPT: Final = ("FLEET", "ENGINE_STATE", "REQUESTS", "JOURNAL")


def everything_of(stream: str) -> str:
    """The pattern of all events that a stream keeps."""
    [pattern] = BY_NAME[stream].subjects
    return pattern


class Past(Protocol):
    """A reader of streams; ``bus.history.History`` keeps this promise, and a bundle does."""

    async def state(self, stream: str) -> StreamState:
        """What the stream holds; raises ``StreamUnavailable``."""
        ...

    def read(
        self, stream: str, *, start_seq: int = 1, subject: str | None = None
    ) -> AsyncIterator[Stored]:
        """From ``start_seq`` to the newest message there is now."""
        ...

    async def first_from(self, stream: str, seq: int) -> Stored | None:
        """The oldest message from ``seq`` on."""
        ...

    async def last_of_each(self, stream: str, subject: str, up_to_seq: int) -> list[Stored]:
        """The last message of each matching subject up to ``up_to_seq``, oldest first."""
        ...


def opened(stored: Stored) -> Decoded | None:
    """The event in ``stored``; None for what this version cannot read."""
    try:
        return decode(stored.data)
    except MalformedMessage:
        return None


def time_of(stored: Stored, message: Message | None = None) -> int:
    """When it was written, by its writer's clock; by the server's where the payload has none."""
    if message is None:
        found = opened(stored)
        message = found.message if found else None
    match message:
        case RequestEventsBatched(events=[*_, last]):
            return last.at_ms
        case EngineStatesReceived(states=[*_, newest]):
            return newest.received_ms
        case _:
            return getattr(message, "at_ms", 0) or stored.time_ms


async def place_of(past: Past, stream: str, at_ms: int) -> int:
    """The sequence of the last message written up to ``at_ms``; 0 when all are later.

    A binary search: some twenty messages are read, however long the stream is.
    """
    state = await past.state(stream)
    low, high = state.first_seq, state.last_seq + 1  # the answer + 1 lies in low..high
    while low < high:
        middle = (low + high) // 2
        stored = await past.first_from(stream, middle)
        if stored is None or stored.seq >= high:
            # Nothing is kept from the middle on, below the known later one.
            high = middle
        elif time_of(stored) <= at_ms:
            low = stored.seq + 1
        else:
            high = middle
    return low - 1 if state.messages else 0


async def read_between(
    past: Past, stream: str, first_seq: int, last_seq: int, subject: str | None = None
) -> AsyncIterator[Stored]:
    """Messages ``first_seq`` to ``last_seq``, both included."""
    if first_seq > last_seq:
        return
    async for stored in past.read(stream, start_seq=max(1, first_seq), subject=subject):
        if stored.seq > last_seq:
            return
        yield stored
