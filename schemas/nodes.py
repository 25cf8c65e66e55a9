"""The registry of nodes: what operators and nodes declare, kept as records with a revision.

The fields of the older service stand first and keep its names and defaults; ours follow. What lives
by itself (heartbeats, load) is in ``schemas.fleet``: a node is what somebody says that there is.
"""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.codes import Role
from schemas.message import Message, Part

NodeType = Literal["master", "worker"]
NodeStatus = Literal["online", "offline"]
NodeState = Literal["STARTING", "READY", "DRAINING", "STOPPED", "ERROR"]
UserRole = Literal["admin", "user", "node"]

#: Why nothing was changed or shown. For programs; ``detail`` beside it is for people.
NodeRefusal = Literal[
    "not_found", "conflict", "forbidden", "invalid", "bad_transition", "full", "store_away"
]
NodeEvent = Literal[
    "registered", "updated", "deleted", "expired", "returned", "unhealthy", "recovered"
]

_NAME = Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")


class Caller(Part):
    """Who asks: an account whose token a gateway has checked, with its roles; or the operator."""

    name: str
    roles: tuple[UserRole, ...]
    trace_id: str = ""


class NodeInfo(Part):
    """Requests that run and wait, and how full the KV cache is, in whatever the node counts."""

    running: int = Field(default=0, ge=0)
    waiting: int = Field(default=0, ge=0)
    kv_cache: float = Field(default=0, ge=0)


class Parallelism(Part):
    """Sizes of the engine's groups."""

    tp: int = Field(default=1, ge=1)
    pp: int = Field(default=1, ge=1)
    dp: int = Field(default=1, ge=1)
    ep: int = Field(default=1, ge=1)


class Topology(Part):
    """Where the node stands; empty and None: not said."""

    machine_id: str = Field(default="", max_length=256)
    rack_id: str = Field(default="", max_length=256)
    gpu_device_ids: tuple[int, ...] = Field(default=(), max_length=64)
    nvlink_peers: tuple[str, ...] = Field(default=(), max_length=64)
    numa_node: int | None = None
    network_gbps: float = Field(default=10.0, ge=0)


EngineArg = str | int | float | bool | None


class Node(Part):
    """One node. ``timeout`` seconds without a word of it and it is ``offline``: a lease.

    ``healthy`` is what probes of its address found; None: it is not probed. Times in ms since 1970.
    """

    node_id: str = _NAME
    node_type: NodeType = "master"
    node_address: str = Field(default="0.0.0.0", max_length=255)  # noqa: S104  (the older default)
    node_port: int = Field(default=8000, ge=1, le=65535)
    node_status: NodeStatus = "offline"
    served_model_name: str = Field(default="", max_length=256)
    node_info: NodeInfo = NodeInfo()
    remark: str = Field(default="", max_length=1024)
    timeout: int = Field(default=60, ge=1, le=86_400)
    create_time: int = 0
    update_time: int = 0
    state: NodeState = "STARTING"
    role: Role = "aggregated"
    models: tuple[str, ...] = Field(default=(), max_length=64)
    capabilities: tuple[str, ...] = Field(default=(), max_length=64)
    parallelism: Parallelism = Parallelism()
    topology: Topology = Topology()
    engine_args: dict[str, EngineArg] = Field(default_factory=dict, max_length=256)
    revision: int = 0
    healthy: bool | None = None


class NodeChanges(Part):
    """What is to be set; None leaves a field as it is."""

    node_type: NodeType | None = None
    node_address: str | None = Field(default=None, max_length=255)
    node_port: int | None = Field(default=None, ge=1, le=65535)
    node_status: NodeStatus | None = None
    served_model_name: str | None = Field(default=None, max_length=256)
    node_info: NodeInfo | None = None
    remark: str | None = Field(default=None, max_length=1024)
    timeout: int | None = Field(default=None, ge=1, le=86_400)
    state: NodeState | None = None
    role: Role | None = None
    models: tuple[str, ...] | None = Field(default=None, max_length=64)
    capabilities: tuple[str, ...] | None = Field(default=None, max_length=64)
    parallelism: Parallelism | None = None
    topology: Topology | None = None
    engine_args: dict[str, EngineArg] | None = Field(default=None, max_length=256)


class NodeChanged(Message):
    """A record changed, or a lease ended or began again. Kept in FLEET, without any content.

    Whoever wrote the record says so; of leases and health each registry tells what it judges.
    """

    schema_id: ClassVar[str] = "node.changed.v1"

    node_id: str
    what: NodeEvent
    by: str = ""
    revision: int = 0
    trace_id: str = ""
    at_ms: int = 0


class NodeHeard(Message):
    """A node gave a sign of life to one registry: its lease goes on at the others too."""

    schema_id: ClassVar[str] = "node.heard.v1"

    node_id: str


class NodeAnswer(Part):
    """One node; without it, ``refusal`` and ``detail`` say why not."""

    node: Node | None = None
    refusal: NodeRefusal | None = None
    detail: str = ""


class RegisterNode(Message):
    """A node makes itself known, or is written anew: what is not said has its default."""

    schema_id: ClassVar[str] = "node.register.v1"

    caller: Caller
    node_id: str = _NAME
    changes: NodeChanges = NodeChanges()


class RegisterNodeReply(NodeAnswer, Message):
    """The record as it is stored."""

    schema_id: ClassVar[str] = "node.register_reply.v1"


class UpdateNode(Message):
    """Set some fields; the others stay. With ``revision`` only if the record still has it."""

    schema_id: ClassVar[str] = "node.update.v1"

    caller: Caller
    node_id: str = _NAME
    changes: NodeChanges = NodeChanges()
    revision: int = Field(default=0, ge=0)


class UpdateNodeReply(NodeAnswer, Message):
    """The record as it is stored."""

    schema_id: ClassVar[str] = "node.update_reply.v1"


class DeleteNode(Message):
    """Forget a node."""

    schema_id: ClassVar[str] = "node.delete.v1"

    caller: Caller
    node_id: str = _NAME
    revision: int = Field(default=0, ge=0)


class DeleteNodeReply(NodeAnswer, Message):
    """The record that was deleted."""

    schema_id: ClassVar[str] = "node.delete_reply.v1"


class ShowNode(Message):
    """One node."""

    schema_id: ClassVar[str] = "node.show.v1"

    node_id: str = _NAME


class ShowNodeReply(NodeAnswer, Message):
    """It, with the status that its lease gives it."""

    schema_id: ClassVar[str] = "node.show_reply.v1"


class ListNodes(Message):
    """Nodes by the order of their ids, after one."""

    schema_id: ClassVar[str] = "node.list.v1"

    after: str = ""
    limit: int = Field(default=500, ge=1, le=1000)
    status: NodeStatus | None = None


class ListNodesReply(Message):
    """``more`` follow the last one."""

    schema_id: ClassVar[str] = "node.list_reply.v1"

    nodes: tuple[Node, ...] = ()
    more: bool = False
    refusal: NodeRefusal | None = None
    detail: str = ""
