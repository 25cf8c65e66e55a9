"""The promise every bus keeps; ``nats_bus`` and ``memory_bus`` implement it, one suite tests both.

Publishing never waits: a message goes into an outgoing buffer and leaves at the end of the loop
turn, in the order in which it was published, whatever its subject. A handler is a plain function
that runs inside the read of the socket, so it must not block; messages of one publisher reach it in
the order in which they were published, across subjects. What needs waiting is started as a task by
the component.

Nothing here is reliable on its own. A message published while the server is away waits in the
bounded buffer; what does not fit is dropped and counted (``dropped_total``). Owners repair:
requests are submitted again, streams resumed, load comes with the next snapshot.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bus.served import Served
from schemas.message import Message

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class Received(Generic[M]):
    """A message as it arrived. ``reply`` is set for questions: pass this object to ``respond``.

    ``json``: a client asked in JSON, without an envelope, and is answered so.
    """

    message: M
    subject: str
    source: str
    epoch: int
    seq: int
    traceparent: str | None
    reply: str | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class ClientCall:
    """JSON of a client, as it came. ``reply`` lies under its tenant's inbox."""

    tenant: str
    reply: str
    data: bytes


class Answers(Protocol):
    """The way of many messages to one client. Nothing here waits."""

    def send(self, data: bytes) -> None:
        """Publish to the client's inbox; raises ``MessageTooLarge``."""

    def close(self) -> None:
        """Nothing follows, nobody needs to tell us that it left. Harmless twice."""


class Asked(Protocol):
    """A call of ours whose answers may still come."""

    @property
    def address(self) -> str:
        """Where they are to come."""
        ...

    def close(self) -> None:
        """Take no more. Harmless twice."""


class Subscription(Protocol):
    """A live subscription; it survives reconnects."""

    async def unsubscribe(self) -> None:
        """Stop delivery. Calling it twice is harmless."""


class Bus(Protocol):
    """One process's connection. ``source`` and ``epoch`` stand in every envelope it sends."""

    @property
    def source(self) -> str: ...

    @property
    def epoch(self) -> int: ...

    @property
    def connected(self) -> bool:
        """True while messages to oneself come back (within the last 3 s on a real bus)."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """What was counted since the start: published, received, malformed, dropped, ..."""
        ...

    @property
    def sent(self) -> Mapping[str, int]:
        """How many messages of each kind were handed over, by schema id: the last ``seq`` of it."""
        ...

    async def connect(self) -> None:
        """Return once connected; raises ``NotConnected`` when that takes longer than set."""

    async def close(self) -> None:
        """Drain: deliver what was published, stop reading, disconnect. Harmless twice."""

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Return when the server has read all that was published; raises ``NotConnected``."""

    def publish(self, subject: str, message: Message, *, trace: str | None = None) -> None:
        """Send, never wait. ``trace`` is the W3C traceparent of the request that caused it.

        Raises ``MessageTooLarge`` above the payload limit.
        """

    def publish_frame(self, subject: str, payload: bytes) -> None:
        """Send a packed token frame: no envelope, no span."""

    async def subscribe(
        self,
        subject: str,
        message: type[M],
        handler: Callable[[Received[M]], None],
        *,
        queue: str | None = None,
    ) -> Subscription:
        """Call ``handler`` for each ``message`` on ``subject`` (tokens may be ``ANY``).

        Malformed or foreign messages are counted and dropped. An exception of the handler is
        counted and given to the bus's ``on_fault``. With ``queue``, one member of the group gets
        each message. Returns when the server knows of the subscription.
        """
        ...

    async def subscribe_frames(
        self, subject: str, handler: Callable[[str, bytes], None]
    ) -> Subscription:
        """Call ``handler(subject, payload)`` for each token frame."""
        ...

    async def ask(
        self,
        subject: str,
        question: Message,
        reply: type[R],
        *,
        timeout_s: float,
        trace: str | None = None,
    ) -> R:
        """One question, one answer; raises ``NoResponders`` at once, ``AskTimedOut`` later."""
        ...

    async def ask_all(
        self, subject: str, question: Message, reply: type[R], *, wait_s: float
    ) -> list[Received[R]]:
        """One question, the answers of all who give one within ``wait_s``."""
        ...

    def respond(self, question: Received[M], reply: Message) -> None:
        """Answer a question. Replies only ever go to inboxes; any other address is refused.

        Raises ``AnswerTooLarge`` above the payload limit, counted (``answers_too_large_total``). A
        handler may let it pass: that is no fault of the process, and the asker's time runs out. A
        client that asked in JSON is told ``answer_too_large`` instead, and nothing is raised.
        """

    async def subscribe_calls(
        self, subject: str, handler: Callable[[ClientCall], None], *, queue: str
    ) -> Subscription:
        """Call ``handler`` for what clients publish on ``subject``, whose last token is a tenant.

        A call that wants its answer elsewhere than in that tenant's inbox is counted and dropped.
        """
        ...

    @property
    def served(self) -> Mapping[str, Served]:
        """What was asked on each subject that is served in a queue group, as on the wire."""
        ...

    async def discoverable(self, subjects: Mapping[str, Callable[[], bytes]]) -> None:
        """Answer whoever looks for services on these subjects of NATS's own (``bus.discovery``)."""

    def answer(self, call: ClientCall, on_gone: Callable[[], None]) -> Answers:
        """Open the way to the client. ``on_gone``: nobody listens there (any more).

        The server says so in answer to the first message that it could not deliver.
        """
        ...

    def call(self, subject: str, data: bytes, on_answer: Callable[[bytes | None], None]) -> Asked:
        """Publish JSON; ``on_answer`` gets each answer's bytes, None when nobody serves this."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call back after each reconnect, when subscriptions are alive again."""
