"""What the scheduler's side orders of the ranks, and what a rank's tables want done. Data only."""

from dataclasses import dataclass, field

from schemas.codes import ReleaseReason
from schemas.links import PullKv, PullRefusal


@dataclass(frozen=True, slots=True)
class Pin:
    """Blocks of a finished prompt, in order, kept for whoever pulls ``transfer_id``."""

    transfer_id: str
    request_id: str
    blocks: tuple[int, ...]
    lease_ms: int


@dataclass(frozen=True, slots=True)
class PullOrder:
    """``blocks`` of this engine are to be filled with blocks ``first_block ..`` of the transfer.

    ``refused`` says why it cannot be pulled at all; then it only fails.
    """

    transfer_id: str
    request_id: str
    source: str
    epoch: int
    first_block: int
    blocks: tuple[int, ...]
    refused: str = ""


# What the tables want done.


@dataclass(frozen=True, slots=True)
class Answer:
    """To the pull with this ticket. Accepted (``refused`` None): serve it."""

    ticket: int
    pull: PullKv
    refused: PullRefusal | None
    chunk_blocks: int = 0


@dataclass(frozen=True, slots=True)
class BreakLink:
    """Close it now: whoever waits on it must come back."""

    link: str


@dataclass(frozen=True, slots=True)
class NameSent:
    """vLLM may free the blocks of ``request_id``."""

    request_id: str
    transfer_id: str
    reason: ReleaseReason
    bytes_moved: int
    ms: float


@dataclass(frozen=True, slots=True)
class BeginPull:
    """A thread has to run this; it says ``begin`` first and ``on_done`` last."""

    order: PullOrder
    deadline_s: float


@dataclass(frozen=True, slots=True)
class NameReceived:
    """vLLM may go on with ``request_id``: with the KV, or (``failed``) without."""

    request_id: str
    transfer_id: str
    failed: bool
    reason: ReleaseReason
    bytes_moved: int
    ms: float
    detail: str


@dataclass(frozen=True, slots=True)
class SayRelease:
    """Tell the holder that nobody here pulls this transfer (any more)."""

    transfer_id: str
    source: str
    epoch: int
    reason: ReleaseReason


@dataclass(frozen=True, slots=True)
class BeginStage:
    """A thread has to pull this into host memory, when it has nothing more urgent."""

    order: PullOrder


@dataclass(frozen=True, slots=True)
class ForgetStaged:
    """Nobody needs the host memory of this request any more."""

    request_id: str


HoldingsOutcome = Answer | BreakLink | NameSent
StagesOutcome = BeginStage | ForgetStaged
PullsOutcome = BeginPull | NameReceived | SayRelease | BreakLink | StagesOutcome


# What goes between the scheduler and the ranks with each step.


@dataclass(slots=True)
class Orders:
    """What the scheduler wants of every rank in one step.

    ``stages`` are for requests that have no blocks: theirs are counted in host memory. ``cancels``
    are of pulls and of stages. ``idle``: the model has nothing to do in this step.
    """

    pins: list[Pin] = field(default_factory=list)
    pulls: list[PullOrder] = field(default_factory=list)
    stages: list[PullOrder] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    releases: list[SayRelease] = field(default_factory=list)
    idle: bool = False


@dataclass(slots=True)
class Finished:
    """Request ids that vLLM may be told of; ``failed`` are also in ``received``."""

    sent: set[str] = field(default_factory=set)
    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
