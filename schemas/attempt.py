"""One attempt of a request at a worker: run, cancel, report, resume."""

from typing import ClassVar

from pydantic import Field

from schemas.codes import AttemptState, FinishReason, NackReason, Phase
from schemas.message import Message, Part
from schemas.request import RequestCard


class RunAttempt(Message):
    """The router gives an attempt to a worker.

    ``dispatch_seq`` counts from 1 per (router, router_epoch, worker); load events answer with
    ``admitted_through``. ``peer`` is the other half of a prefill/decode pair and ``transfer_id``
    names what they hand over. A worker refuses an epoch lower than the highest it has seen.
    """

    schema_id: ClassVar[str] = "attempt.run.v1"

    card: RequestCard
    phase: Phase
    worker_epoch: int
    router: str
    router_epoch: int
    dispatch_seq: int
    transfer_id: str | None = None
    peer: str | None = None
    peer_epoch: int | None = None
    body: bytes | None = None


class CancelAttempt(Message):
    """Stop this attempt, and any earlier one of the request; free its KV blocks."""

    schema_id: ClassVar[str] = "attempt.cancel.v1"

    request_id: str
    attempt: int
    reason: str = "client_gone"


class AttemptReported(Message):
    """How an attempt fares, from its worker to the scheduler and the router of the shard.

    A signal: what is lost shows in the next load event. ``nack`` is set when refused, ``finish``
    when ended; ``output_tokens`` is the sum over choices, ``cached_tokens`` the prefix hit.
    """

    schema_id: ClassVar[str] = "attempt.reported.v1"

    request_id: str
    attempt: int
    worker: str
    worker_epoch: int
    phase: Phase
    state: AttemptState
    router: str
    router_epoch: int
    dispatch_seq: int
    nack: NackReason | None = None
    finish: FinishReason | None = None
    output_tokens: int = 0
    cached_tokens: int = 0


class StreamPosition(Part):
    """The next token index that a reader of a stream is missing."""

    request_id: str
    attempt: int
    choice: int
    next_index: int = Field(ge=0)


class ResumeStreams(Message):
    """A gateway asks a worker for what it missed of these streams."""

    schema_id: ClassVar[str] = "streams.resume.v1"

    positions: tuple[StreamPosition, ...]


class ResumeStreamsReply(Message):
    """Token entries (layout: ``schemas.frames``, packed) from the positions on, oldest first.

    ``unknown`` names streams that the worker no longer holds. ``more`` says that the answer was cut
    at the size limit and a next question will get the rest.
    """

    schema_id: ClassVar[str] = "streams.resume_reply.v1"

    entries: bytes
    unknown: tuple[StreamPosition, ...] = ()
    more: bool = False
