"""Engines of ours as records: which there should be, whoever is heard now.

The registry writes one record per engine when something about it changes, never per heartbeat. Who
lives is heard (``schemas.fleet``); a record is what is left when nobody is.
"""

from typing import ClassVar, Final

from pydantic import Field

from schemas.codes import Role
from schemas.message import Message, Part
from schemas.nodes import EngineArg, NodeRefusal, NodeState, Parallelism, Topology

#: Of one engine's arguments; what is over it is left out.
ENGINE_ARGS_MAX: Final = 64
#: Of engines that are listed at a time.
ENGINES_PAGE_MAX: Final = 200

NAME_CHARS_MAX: Final = 256
_NAME = Field(min_length=1, max_length=NAME_CHARS_MAX)


class EngineAbout(Part):
    """What an engine is for the whole of its life; empty: its worker does not know.

    ``kind`` is the worker's setting ``engine``, ``version`` that of what runs in the worker's own
    environment. ``parallelism`` of a server elsewhere is not known: 1 each. ``capabilities`` are
    the phases that it can do and its model's features. ``engine_args`` hold no secrets.
    """

    kind: str = Field(default="", max_length=32)
    version: str = Field(default="", max_length=64)
    parallelism: Parallelism = Parallelism()
    capabilities: tuple[str, ...] = Field(default=(), max_length=64)
    topology: Topology = Topology()
    engine_args: dict[str, EngineArg] = Field(default_factory=dict, max_length=ENGINE_ARGS_MAX)


class EngineRecord(Part):
    """One engine as the registry last knew it; ``process_epoch`` says in which life.

    STARTING, READY and DRAINING are what it says itself, STOPPED is its goodbye, ERROR its silence.
    ``about`` is what it said in the life ``about_epoch``, which may be an earlier one.
    ``created_ms`` and ``updated_ms`` in ms since 1970.
    """

    engine: str = _NAME
    process_epoch: int
    state: NodeState
    role: Role
    model: str
    shard: str = ""
    host: str = ""
    about: EngineAbout = EngineAbout()
    about_epoch: int = 0
    created_ms: int = 0
    updated_ms: int = 0
    revision: int = 0


class KnownEngine(Part):
    """A record, and whether the registry that answers hears this engine now.

    ``missing``: it should be there (it did not say goodbye) and is not heard. ``silent_ms``: since
    it was last heard; None: not since that registry began. ``revision`` 0: not written yet.
    """

    record: EngineRecord
    heard: bool
    missing: bool
    silent_ms: int | None = None


class EngineChanged(Message):
    """The record of an engine changed; ``state`` None: it was removed. Kept in FLEET."""

    schema_id: ClassVar[str] = "engine.changed.v1"

    engine: str
    process_epoch: int
    state: NodeState | None
    role: Role
    revision: int = 0
    at_ms: int = 0


class DescribeEngine(Message):
    """What is your engine? Asked of a worker once in each of its lives, when it is ready."""

    schema_id: ClassVar[str] = "engine.describe.v1"


class DescribeEngineReply(Message):
    """It."""

    schema_id: ClassVar[str] = "engine.describe_reply.v1"

    about: EngineAbout


class ShowEngine(Message):
    """One engine."""

    schema_id: ClassVar[str] = "engine.show.v1"

    engine: str = _NAME


class ShowEngineReply(Message):
    """It; without it, ``refusal`` and ``detail`` say why not."""

    schema_id: ClassVar[str] = "engine.show_reply.v1"

    engine: KnownEngine | None = None
    refusal: NodeRefusal | None = None
    detail: str = ""


class ListEngines(Message):
    """Engines by the order of their names, after one; with ``missing`` only those who are."""

    schema_id: ClassVar[str] = "engine.list.v1"

    after: str = ""
    limit: int = Field(default=100, ge=1, le=ENGINES_PAGE_MAX)
    missing: bool = False


class ListEnginesReply(Message):
    """``more`` follow the last one.

    ``complete`` False: the records could not be read yet, so only who was heard is here.
    """

    schema_id: ClassVar[str] = "engine.list_reply.v1"

    engines: tuple[KnownEngine, ...] = ()
    more: bool = False
    complete: bool = True


class ForgetEngine(Message):
    """Remove the record of an engine that is not heard."""

    schema_id: ClassVar[str] = "engine.forget.v1"

    engine: str = _NAME


class ForgetEngineReply(Message):
    """``refusal`` says why it was not done."""

    schema_id: ClassVar[str] = "engine.forget_reply.v1"

    refusal: NodeRefusal | None = None
    detail: str = ""
