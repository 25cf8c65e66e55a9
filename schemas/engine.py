"""What an engine says of itself: load, KV blocks, and the ELRAR state that others send."""

from typing import ClassVar, Final, Literal

from pydantic import Field

from schemas.codes import EngineAction, EngineActivity, Role
from schemas.message import Message, Part

#: States that one message holds at most.
STATES_MAX: Final = 1024


class Admitted(Part):
    """The highest dispatch sequence of one router's epoch that this snapshot contains."""

    router: str
    router_epoch: int
    dispatch_seq: int


class StepTimeFit(Part):
    """What an agent has learnt of its engine: one step takes, in ms,

        base + per_token * tokens + per_seq * running + per_context_token * context

    over ``tokens`` computed in the step, ``running`` sequences with ``context`` tokens in all.
    ``error`` is the mean relative error over the last ``samples`` steps.
    """

    base_ms: float
    per_token_ms: float
    per_seq_ms: float
    per_context_token_ms: float
    samples: int = Field(ge=0)
    error: float = Field(ge=0)


class EngineLoadReported(Message):
    """A snapshot of one engine's load. Kept in ENGINE_STATE.

    ``running`` and ``waiting`` count requests, ``queued_tokens`` prompt tokens not yet computed,
    ``kv_pages_*`` pages of 16 tokens, ``watermark`` engine steps since its start. ``admitted`` says
    which dispatches are in these figures; a reader adds its own later ones. ``leases`` counts
    handoffs that hold blocks. ``router_epoch_max`` is the highest router epoch the worker obeys.
    An engine that is not ``running`` makes no steps, and is not to blame for it. ``at_ms`` is the
    worker's wall clock, by which the past is asked for.
    """

    schema_id: ClassVar[str] = "engine.load_reported.v1"

    engine: str
    engine_epoch: int
    role: Role
    model: str
    shard: str
    running: int = Field(ge=0)
    waiting: int = Field(ge=0)
    seqs_max: int = Field(ge=1)
    queued_tokens: int = Field(ge=0)
    kv_pages_used: int = Field(ge=0)
    kv_pages_total: int = Field(ge=0)
    watermark: int = Field(ge=0)
    admitted: tuple[Admitted, ...] = ()
    router_epoch_max: int = 0
    leases: int = Field(default=0, ge=0)
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    predicted_step_ms: float = 0.0
    predicted_wait_ms: float = 0.0
    capacity_tokens_per_s: float = 0.0
    scheduling_mode: Literal["latency_optimized", "balanced", "throughput_optimized"] = "balanced"
    accepting: bool = True
    activity: EngineActivity = "running"
    step_fit: StepTimeFit | None = None
    at_ms: int = 0


class EngineStateReceived(Part):
    """An ELRAR datagram that a bridge took in: the seed's eight fields, when and from where.

    ``received_ms`` is the bridge's wall clock; ``source_address`` the sender as ``host:port``;
    ``trust`` tells signed senders from plain ones, which have no ``sender_epoch`` and
    ``sender_seq`` (0). A ``heartbeat`` says that the engine lives; where it came while a load was
    still fresh, the figures are those of that load.
    """

    engine_id: str
    timestamp_ms: int
    latency_pred_ms: float
    scheduling_mode: Literal["latency_optimized", "balanced", "throughput_optimized"]
    pending_tokens_total: int
    kv_cache_free_blocks: int
    kv_cache_total_blocks: int
    engine_capacity: float
    received_ms: int
    source_address: str
    trust: Literal["low", "signed"] = "low"
    sender_epoch: int = 0
    sender_seq: int = 0
    heartbeat: bool = False


class EngineStatesReceived(Message):
    """What a bridge took from one engine in one wake-up, oldest first. Kept in ENGINE_STATE."""

    schema_id: ClassVar[str] = "engine.states_received.v1"

    engine_id: str
    states: tuple[EngineStateReceived, ...] = Field(min_length=1, max_length=STATES_MAX)


class EngineStateSeen(Part):
    """The last state that a bridge took from an engine, and how old it is by the bridge's clock.

    ``stale``: older than the bridge's ``stale_after_s``. ``kept`` states of it are in the history.
    ``clock_ahead_ms``: the sender's clock against the bridge's, as the least of (received - sent)
    over the history, negated: right up to the fastest datagram's way; a clock behind is negative.
    ``sent_age_ms``: how old by the sender's own clock, corrected by that; ``stale_by_send`` judges
    it by the same bound, so a datagram that was long on its way is not taken for news.
    ``lost`` of ``heard + lost`` datagrams did not come, by the numbers of a signed sender; None
    for a plain one, which has none.
    """

    state: EngineStateReceived
    age_ms: int = Field(ge=0)
    stale: bool
    kept: int = Field(ge=1)
    clock_ahead_ms: int
    sent_age_ms: int = 0
    stale_by_send: bool = False
    heard: int = 0
    lost: int | None = None


class ShowStates(Message):
    """What does a bridge know of engines outside? Of all by the order of their ids, after one.

    With ``engine_id``: of that one, with its last ``history`` states, oldest first.
    """

    schema_id: ClassVar[str] = "engine.show_states.v1"

    engine_id: str | None = None
    history: int = Field(default=0, ge=0, le=100)
    after: str = ""
    limit: int = Field(default=500, ge=1, le=1000)


class ShowStatesReply(Message):
    """``totals`` and ``levels`` are the bridge's counters; ``more`` engines follow the last one.

    ``address`` is what it listens on, ``udp://HOST:PORT``.
    """

    schema_id: ClassVar[str] = "engine.show_states_reply.v1"

    engines: tuple[EngineStateSeen, ...]
    history: tuple[EngineStateReceived, ...] = ()
    totals: dict[str, int]
    levels: dict[str, int]
    valid_rate: str
    more: bool = False
    address: str = ""
    network_mode: str = ""
    stale_after_ms: int = 0


class KvPagesChanged(Message):
    """Pages that entered or left an engine's prefix cache, as our hashes. Kept in KV_EVENTS.

    ``stored`` and ``removed`` are 8 bytes little-endian each; ``parent`` is the page before the
    first stored one (0: none). ``cleared`` says that the cache is empty before the others apply.
    ``first_change`` counts changes since the engine started, so that a reader notices a gap.
    """

    schema_id: ClassVar[str] = "kv.pages_changed.v1"

    engine: str
    engine_epoch: int
    first_change: int
    parent: int = 0
    stored: bytes = b""
    removed: bytes = b""
    cleared: bool = False


class ShowPages(Message):
    """A reader of ``KvPagesChanged`` that missed some asks for the whole cache, from a place on.

    ``offset`` 2**32 - 1 asks for ``change`` and for no page: has anything been missed?
    """

    schema_id: ClassVar[str] = "kv.show_pages.v1"

    offset: int = Field(default=0, ge=0)


class ShowPagesReply(Message):
    """Pages ``offset ..`` of ``total`` that the engine's prefix cache holds after ``change``.

    ``pages`` and their ``parents`` are 8 bytes little-endian each, parents before children. A
    ``change`` other than that of the first answer means that the cache went on: begin again.
    """

    schema_id: ClassVar[str] = "kv.show_pages_reply.v1"

    engine: str
    engine_epoch: int
    change: int
    total: int
    offset: int
    pages: bytes
    parents: bytes


class ControlEngine(Message):
    """An operator wants something of an engine, or of its agent.

    ``pause`` freezes what runs (``keep``) or aborts it; ``sleep`` gives memory back (level 1 keeps
    the weights on the host, 2 drops them); ``drain`` takes nothing new, ``accept`` undoes it;
    ``set_role`` waits for what runs, at most ``deadline_ms``, then changes the role.
    """

    schema_id: ClassVar[str] = "engine.control.v1"

    action: EngineAction
    keep: bool = True
    level: Literal[1, 2] = 1
    role: Role | None = None
    deadline_ms: int = Field(default=30_000, ge=0, le=600_000)


class ControlEngineReply(Message):
    """How the engine stands now; ``done`` False says, with ``detail``, why it was not done."""

    schema_id: ClassVar[str] = "engine.control_reply.v1"

    engine: str
    done: bool
    detail: str = ""
    role: Role
    activity: EngineActivity
    accepting: bool
