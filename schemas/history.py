"""Is the history whole? What streams hold, what was published and is not there, and since when."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.message import Message, Part

#: ``away``: streams cannot be asked. ``not_storing``: what is published does not arrive in them.
HistoryState = Literal["ok", "away", "not_storing"]


class HistoryGapFound(Message):
    """Events ``first_seq`` to ``last_seq`` of one sender's kind were published and not stored.

    Kept in FLEET. ``filled``: they came after all, later than anybody should wait for.
    """

    schema_id: ClassVar[str] = "history.gap_found.v1"

    stream: str
    source: str
    epoch: int
    event: str
    first_seq: int = Field(ge=1)
    last_seq: int = Field(ge=1)
    at_ms: int = 0
    filled: bool = False


class HistoryStateChanged(Message):
    """Whoever audits the history finds it in another state. Kept in FLEET as soon as it can be."""

    schema_id: ClassVar[str] = "history.state_changed.v1"

    auditor: str
    state: HistoryState
    why: str = ""
    at_ms: int = 0


class HistoryTailLost(Message):
    """What this life of ``source`` published from ``since_ms`` on may be missing in part.

    It ended while something was wrong with the store, before it could say how much that was. Kept
    in FLEET.
    """

    schema_id: ClassVar[str] = "history.tail_lost.v1"

    auditor: str
    source: str
    epoch: int
    since_ms: int
    at_ms: int = 0


class HistoryProbed(Message):
    """The auditor asks a stream whether it stores anything at all, by looking for this in it."""

    schema_id: ClassVar[str] = "history.probed.v1"

    stream: str
    auditor: str
    at_ms: int = 0


class StreamNow(Part):
    """One stream: what it holds, and what bounds it."""

    name: str
    messages: int
    bytes: int
    bytes_max: int
    age_max_s: int
    first_seq: int
    last_seq: int
    audited_seq: int = 0


class ShowHistory(Message):
    """How is the history?"""

    schema_id: ClassVar[str] = "history.show.v1"


class ShowHistoryReply(Message):
    """``gaps`` and ``tails`` are the last ones found, newest last; the totals count from the start.

    ``waiting`` events are missing now and may still come. A stream that does not answer is shown as
    it last was, or not at all.
    """

    schema_id: ClassVar[str] = "history.show_reply.v1"

    state: HistoryState
    why: str = ""
    streams: tuple[StreamNow, ...] = ()
    gaps: tuple[HistoryGapFound, ...] = ()
    gaps_total: int = 0
    waiting: int = 0
    tails: tuple[HistoryTailLost, ...] = ()
    tails_total: int = 0
