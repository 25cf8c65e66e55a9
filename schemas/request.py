"""A request on its way in: card, queue, dispatch, cancel, and the record of its life."""

from typing import ClassVar

from pydantic import Field

from schemas.codes import RefusalCode, RequestStep, ServiceClass
from schemas.message import Message, Part


class RequestCard(Part):
    """What the control path needs to know of a request, and no word of its content.

    ``attempt`` is the number that the next attempt will carry (1 for a fresh request); a
    continuation also says how many tokens the client already has (``emitted_tokens``, the sum over
    choices). ``page_hashes`` are 8 bytes little-endian per full 16-token page of the prompt, a
    chain salted by tenant. ``budget_ms`` is what was left of the deadline when this was sent.
    ``whole``: one engine must compute prompt and answer (logprobs of the prompt cannot travel).
    ``output_tokens_given`` False: the client set no limit, ``output_tokens_max`` is all that fits.
    """

    request_id: str = Field(min_length=1, max_length=64)
    attempt: int = Field(ge=1)
    gateway: str
    model: str
    tenant: str = "default"
    service_class: ServiceClass = "standard"
    budget_ms: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    output_tokens_max: int = Field(ge=1)
    emitted_tokens: int = Field(default=0, ge=0)
    choices: int = Field(default=1, ge=1)
    body_bytes: int = Field(default=0, ge=0)
    page_hashes: bytes = b""
    traceparent: str | None = None
    resume_ms: int = Field(default=0, ge=0)
    whole: bool = False
    output_tokens_given: bool = True


class ScheduleRequest(Message):
    """A gateway asks for a request to be queued; sent again under the same id it changes nothing.

    ``body`` (layout: ``schemas.body``) rides along under 8 KB; otherwise the worker asks for it.
    """

    schema_id: ClassVar[str] = "request.schedule.v1"

    card: RequestCard
    body: bytes | None = None


class RequestQueued(Message):
    """The scheduler has the request: ``place`` others stand before it."""

    schema_id: ClassVar[str] = "request.queued.v1"

    request_id: str
    attempt: int
    scheduler: str
    place: int


class RequestRefused(Message):
    """The request will not run, or not further. ``retry_after_ms`` 0 means: do not try again."""

    schema_id: ClassVar[str] = "request.refused.v1"

    request_id: str
    attempt: int
    code: RefusalCode
    detail: str = ""
    retry_after_ms: int = 0


class RequestDispatched(Message):
    """An attempt went to its worker: whom to cancel, and where to resume.

    ``worker`` emits the tokens; ``prefill_worker`` computes the prompt's KV when both share the
    work. ``router_epoch`` orders dispatches of routers that followed each other.
    """

    schema_id: ClassVar[str] = "request.dispatched.v1"

    request_id: str
    attempt: int
    worker: str
    worker_epoch: int
    prefill_worker: str | None
    router: str
    router_epoch: int


class CancelRequest(Message):
    """The client left: drop the request from the queue; its attempt is cancelled at the worker."""

    schema_id: ClassVar[str] = "request.cancel.v1"

    request_id: str
    reason: str = "client_gone"


class RequestEvent(Part):
    """One step in a request's life, with hashes and lengths but never content.

    ``at_ms`` is wall time, for people; order is by (source, epoch, seq). ``detail`` holds what the
    step adds: the plan and each candidate's cost terms for ``routed``, usage for ``finished``.
    """

    request_id: str
    step: RequestStep
    attempt: int
    at_ms: int
    seq: int
    traceparent: str | None = None
    detail: dict[str, str | int | float | list[str | int | float | None] | None] = Field(
        default_factory=dict
    )


class RequestEventsBatched(Message):
    """The steps that one process saw within 10 ms or 128 KB. Kept in REQUESTS."""

    schema_id: ClassVar[str] = "request.batch.v1"

    events: tuple[RequestEvent, ...]
