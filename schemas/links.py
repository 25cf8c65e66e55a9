"""What engine processes say to each other (and to their agents) when one pulls KV from another.

Each rank of an engine is a *connector* with a name and key of its own: ``<worker>-engine-<rank>``.
KV itself never comes here: it moves over a link between two connectors. These messages make the
ends of a link meet, ask for KV, and say when it may be freed.

    D: PullKv -> P: accepted          both: PostLinkKey until the link stands (first time only)
    (bytes move over the link)        P, D: KvMoved to their agents
    D or an agent: ReleaseKv -> P     nobody will pull this any more
"""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.codes import ReleaseReason
from schemas.message import Message

#: Why a pull was not begun. ``stale_link``: ask again with a new link.
PullRefusal = Literal[
    "unknown_transfer",
    "stale_epoch",
    "stale_link",
    "out_of_range",
    "mismatch",
    "busy",
    "closing",
]


class PostLinkKey(Message):
    """One entry of the store over which the two ends of a link find each other."""

    schema_id: ClassVar[str] = "link.post_key.v1"

    link: str = Field(max_length=400)
    sender: str
    key: str = Field(max_length=256)
    value: bytes = Field(max_length=65_536)


class PullKv(Message):
    """Send me blocks ``first_block ..`` of what you hold for this transfer, over this link.

    Blocks are counted within the transfer: nobody outside names a block of P's cache.
    ``block_bytes`` is one block of all layers.
    """

    schema_id: ClassVar[str] = "kv.pull.v1"

    transfer_id: str
    sender: str
    sender_epoch: int
    epoch: int
    link: str
    first_block: int = Field(ge=0)
    blocks: int = Field(gt=0)
    block_bytes: int = Field(gt=0)
    chunk_blocks: int = Field(gt=0)


class PullKvReply(Message):
    """``refused`` None: P's end of the link is about to be opened, or to send.

    ``chunk_blocks`` is how many blocks P sends at once, no more than was asked for.
    """

    schema_id: ClassVar[str] = "kv.pull_reply.v1"

    transfer_id: str
    refused: PullRefusal | None = None
    chunk_blocks: int = Field(default=0, ge=0)


class ReleaseKv(Message):
    """Nobody pulls this transfer any more: its blocks may be freed. Of a former life: ignored."""

    schema_id: ClassVar[str] = "kv.release.v1"

    transfer_id: str
    epoch: int
    reason: ReleaseReason


class KvMoved(Message):
    """A connector tells its agent how a transfer ended at this rank; once per transfer and side.

    Sent: ``reason`` says why the blocks were freed (``consumed`` when D has everything). Received:
    ``consumed`` when the KV is in place, else why it is not; ``detail`` is for people.
    """

    schema_id: ClassVar[str] = "kv.moved.v1"

    transfer_id: str
    side: Literal["sent", "received"]
    reason: ReleaseReason
    rank: int = Field(ge=0)
    ranks: int = Field(gt=0)
    bytes_moved: int = Field(ge=0)
    ms: float = Field(ge=0)
    detail: str = ""
