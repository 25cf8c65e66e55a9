"""When and where, decided together and late: the scheduler shows a window, the router fills it."""

from typing import ClassVar

from pydantic import Field

from schemas.codes import WaitReason
from schemas.message import Message, Part
from schemas.request import RequestCard


class CandidateCost(Part):
    """What the router knew of one worker when it chose: cost terms, and how old the state was.

    ``cost_ms`` is what the engine model says of this request there (``components.domain.cost``);
    None for an engine that has not said yet what its steps cost.
    """

    worker: str
    chosen: bool
    load: int
    room: int
    state_seq: int
    state_age_ms: int
    queued_tokens: int = 0
    free_pages: int = 0
    cost_ms: float | None = None


class Plan(Part):
    """Where one attempt runs: one aggregated engine, or a prefill and a decode engine."""

    request_id: str
    attempt: int
    worker: str
    worker_epoch: int
    prefill_worker: str | None = None
    prefill_epoch: int | None = None
    transfer_id: str | None = None
    candidates: tuple[CandidateCost, ...] = ()


class CardWaits(Part):
    """Why one card of the window was not placed."""

    request_id: str
    reason: WaitReason


class RouteWindow(Message):
    """The scheduler shows the head of its queue, up to K cards, in its order.

    ``bodies`` stand beside their cards (nil: the worker asks the gateway).
    """

    schema_id: ClassVar[str] = "window.route.v1"

    shard: str
    scheduler: str
    window: int
    cards: tuple[RequestCard, ...]
    bodies: tuple[bytes | None, ...] = ()


class RouteWindowReply(Message):
    """0 to K plans, already dispatched, and why the others wait."""

    schema_id: ClassVar[str] = "window.route_reply.v1"

    shard: str
    window: int
    router: str
    router_epoch: int
    plans: tuple[Plan, ...]
    waits: tuple[CardWaits, ...]


class RoomChanged(Message):
    """There is room again in this shard: show the next window. A signal, never kept."""

    schema_id: ClassVar[str] = "room.changed.v1"

    shard: str
    router: str
    room: int = Field(ge=0)
