"""What a core may want done. The service does it; the journal digests it; replay compares it.

``to`` holds the names that the message's subject function takes, in order.
"""

from dataclasses import dataclass, field
from typing import Protocol

from schemas.codes import RequestStep
from schemas.message import Message

Detail = dict[str, str | int | float | list[str | int | float | None] | None]


@dataclass(frozen=True, slots=True)
class Send:
    """Publish ``message``."""

    message: Message
    to: tuple[str, ...]
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask ``message``; the answer comes back to the core as a message."""

    message: Message
    to: tuple[str, ...]
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the question known by ``to`` with ``message``."""

    message: Message
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A step in a request's life, for the history."""

    request_id: str
    step: RequestStep
    attempt: int
    trace: str | None = None
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Count:
    """Add to a counter that the process shows."""

    name: str
    by: int = 1


Outcome = Send | Ask | Answer | Record | Count


class Core(Protocol):
    """Pure: messages and time in, outcomes out. The same object runs live, in replay, in tests.

    ``seq`` is the envelope's sequence number, 0 where there is none. ``snapshot`` gives plain
    values (what msgpack takes) and ``restore`` brings a fresh core with the same settings back to
    that state; afterwards both give the same outcomes for the same inputs, bit for bit.
    """

    def on_message(self, message: Message, now_s: float, seq: int = 0) -> list[Outcome]: ...

    def on_tick(self, now_s: float) -> list[Outcome]: ...

    def on_resume(self, now_s: float) -> list[Outcome]:
        """The bus was away and is back: silence until now says nothing about peers."""
        ...

    def snapshot(self) -> object: ...

    def restore(self, state: object) -> None: ...
