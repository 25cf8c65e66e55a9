"""The handoff of KV blocks from a prefill worker P to a decode worker D.

    P: OFFER -> D: GRANT -> P: (bytes move over the link) READY -> D: CONSUMED

RELEASED may come from either side in any phase. P owns the blocks and the lease, and its reaper
frees them whatever happens to D. Leases are durations, run on the receiver's monotonic clock.
"""

from typing import ClassVar

from pydantic import Field

from schemas.codes import ReleaseReason
from schemas.message import Message


class OfferHandoff(Message):
    """P has the prompt's KV and keeps it for ``lease_ms``."""

    schema_id: ClassVar[str] = "handoff.offer.v1"

    transfer_id: str
    request_id: str
    attempt: int
    sender: str
    sender_epoch: int
    tokens: int = Field(ge=0)
    pages: int = Field(ge=0)
    bytes_total: int = Field(ge=0)
    lease_ms: int = Field(gt=0)
    params: dict[str, str | int | None] = Field(default_factory=dict)


class GrantHandoff(Message):
    """D has budget for the blocks: move them."""

    schema_id: ClassVar[str] = "handoff.grant.v1"

    transfer_id: str
    sender: str
    sender_epoch: int
    pages: int


class RenewHandoff(Message):
    """D still wants the blocks but has no room yet: the lease starts anew.

    Before any offer it is a question: a P that does not know the transfer answers with a release,
    so that D need not wait for the whole time of an offer.
    """

    schema_id: ClassVar[str] = "handoff.renew.v1"

    transfer_id: str
    sender: str


class ReadyHandoff(Message):
    """All bytes are with D."""

    schema_id: ClassVar[str] = "handoff.ready.v1"

    transfer_id: str
    sender: str
    sender_epoch: int
    bytes_moved: int


class ConsumeHandoff(Message):
    """D runs on its own copy: P may free the blocks."""

    schema_id: ClassVar[str] = "handoff.consume.v1"

    transfer_id: str
    sender: str


class ReleaseHandoff(Message):
    """The sender of this gives up the transfer; both sides free what they hold for it."""

    schema_id: ClassVar[str] = "handoff.release.v1"

    transfer_id: str
    sender: str
    reason: ReleaseReason
