"""Who is there: heartbeats, joins and leaves, and what one may ask a component."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.codes import ProcessState, Role
from schemas.engine import EngineLoadReported, EngineStateReceived
from schemas.message import Message, Part


class HeartbeatSent(Message):
    """I live. Every 250 ms, on core NATS, judged by the receiver's monotonic clock.

    ``owns`` names the models (scheduler) or shards (router) that this process answers for. The
    fields from ``role`` on are a worker's; ``watermark`` moves while its engine makes steps.
    """

    schema_id: ClassVar[str] = "heartbeat.sent.v1"

    component: str
    instance: str
    process_epoch: int
    state: ProcessState
    since_ms: int
    pid: int
    host: str
    address: str | None = None
    owns: tuple[str, ...] = ()
    role: Role | None = None
    model: str | None = None
    shard: str | None = None
    watermark: int = 0
    running: int = 0


class FleetJoined(Message):
    """A process was heard for the first time under this epoch. Kept in FLEET.

    ``at_ms``, here and below: the wall clock of whoever says it.
    """

    schema_id: ClassVar[str] = "fleet.joined.v1"

    component: str
    instance: str
    process_epoch: int
    host: str
    pid: int
    role: Role | None = None
    model: str | None = None
    settings_hash: str = ""
    at_ms: int = 0


class FleetLeft(Message):
    """A process said goodbye (``drained``) or fell silent (``lost``). Kept in FLEET."""

    schema_id: ClassVar[str] = "fleet.left.v1"

    component: str
    instance: str
    process_epoch: int
    lost: bool
    silent_ms: int = 0
    at_ms: int = 0


class FleetRegistered(Message):
    """An engine outside Switchyard made itself known to a bridge, or stands in its settings.

    ``instance`` is its HTTP address; ``kv_address`` where its KV connector listens. It is forgotten
    ``ttl_ms`` after it was last heard; 0: never. Said again to a registry that starts anew.
    """

    schema_id: ClassVar[str] = "fleet.registered.v1"

    instance: str
    role: Role
    http_address: str
    kv_address: str = ""
    by: Literal["ping", "static"] = "ping"
    ttl_ms: int = Field(default=0, ge=0)
    at_ms: int = 0


class FleetExpired(Message):
    """An engine outside Switchyard was not heard for its ``ttl_ms``. Kept in FLEET."""

    schema_id: ClassVar[str] = "fleet.expired.v1"

    instance: str
    role: Role
    silent_ms: int = Field(default=0, ge=0)
    at_ms: int = 0


class ShowComponent(Message):
    """What are you, and what have you counted? Asked of one instance, or of ``all``."""

    schema_id: ClassVar[str] = "component.show.v1"


class ShowComponentReply(Message):
    """The answering process's last heartbeat, its counters, and the bus as it sees it.

    ``published``: how many events of each kind this life has published, by schema id.
    """

    schema_id: ClassVar[str] = "component.show_reply.v1"

    heartbeat: HeartbeatSent
    counters: dict[str, int]
    notes: tuple[str, ...] = ()
    published: dict[str, int] = Field(default_factory=dict)


class EngineEntry(Part):
    """What the registry knows of one engine: its own report, or the state a bridge took in."""

    engine: str
    age_ms: int
    stale: bool
    load: EngineLoadReported | None = None
    state: EngineStateReceived | None = None


class FleetEntry(Part):
    """What the registry knows of one process."""

    heartbeat: HeartbeatSent
    silent_ms: int
    lost: bool


class ShowFleet(Message):
    """Who is there? Asked of the registry."""

    schema_id: ClassVar[str] = "fleet.show.v1"


class ShowFleetReply(Message):
    """Every process and engine that the registry has heard of.

    ``registered`` are engines outside Switchyard that a bridge knows of.
    """

    schema_id: ClassVar[str] = "fleet.show_reply.v1"

    processes: tuple[FleetEntry, ...]
    engines: tuple[EngineEntry, ...]
    registered: tuple[FleetRegistered, ...] = ()


#: ``tools`` and ``reasoning``: it has a parser for them. ``renders``: it renders chats itself.
Feature = Literal[
    "structured_outputs", "tools", "reasoning", "prompt_logprobs", "logit_bias", "min_p", "renders"
]


class ModelCard(Part):
    """What a gateway needs to serve a model.

    ``tokenizer_json`` is the model's ``tokenizer.json``, zlib-compressed; empty when the model
    publishes none (then text is not tokenised here). ``chat_template`` is Jinja source as in
    ``tokenizer_config.json``. ``context_tokens_max`` bounds prompt plus output.
    """

    model: str
    created_s: int
    context_tokens_max: int = Field(ge=1)
    tokenizer_json: bytes = b""
    chat_template: str = ""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    owned_by: str = "switchyard"
    #: What the engine can do beyond plain text; see ``Feature``.
    features: tuple[Feature, ...] = ()


class ShowModel(Message):
    """A gateway asks any worker of a model for its card."""

    schema_id: ClassVar[str] = "model.show.v1"

    model: str


class ShowModelReply(Message):
    """The card."""

    schema_id: ClassVar[str] = "model.show_reply.v1"

    card: ModelCard
