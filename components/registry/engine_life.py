"""One life of an engine as this registry heard it, and the record that it asks for. Pure."""

import math
from dataclasses import dataclass
from typing import Final

from schemas.codes import ProcessState, Role
from schemas.engines import NAME_CHARS_MAX, EngineAbout, EngineRecord
from schemas.fleet import HeartbeatSent
from schemas.nodes import NodeState

#: An engine that is less than well still takes work, or its router decides that it does not.
STATES: Final[dict[ProcessState, NodeState]] = {
    "starting": "STARTING",
    "ready": "READY",
    "degraded": "READY",
    "draining": "DRAINING",
    "stopped": "STOPPED",
}
#: How an engine is that ended.
GONE: Final[frozenset[NodeState]] = frozenset({"STOPPED", "ERROR"})


@dataclass(frozen=True, slots=True)
class Said:
    """What heartbeats say that a record keeps; of texts the first ``NAME_CHARS_MAX``."""

    epoch: int
    state: NodeState
    role: Role
    model: str
    shard: str
    host: str


@dataclass(slots=True)
class Life:
    """The newest life of an engine that was heard here. ``closed``: it takes nothing new."""

    said: Said
    heard_s: float
    here: bool = True
    closed: bool = False
    about: EngineAbout | None = None
    asked_s: float = -math.inf

    @property
    def state(self) -> NodeState:
        return "DRAINING" if self.closed and self.said.state == "READY" else self.said.state


def said_by(beat: HeartbeatSent, role: Role, model: str) -> Said:
    """Of a worker that says ``role`` and ``model``, as all do."""
    texts = (text[:NAME_CHARS_MAX] for text in (model, beat.shard or "", beat.host))
    return Said(beat.process_epoch, STATES[beat.state], role, *texts)


def lost(record: EngineRecord) -> Said:
    """The same, fallen silent."""
    return Said(record.process_epoch, "ERROR", record.role, record.model, record.shard, record.host)


def written(name: str, life: Life, record: EngineRecord | None) -> EngineRecord:
    """The record that this life asks for; what is not said anew stays.

    So does what this life said to another registry: two of them would never agree on what fits.
    """
    said = life.said
    about, about_epoch = (record.about, record.about_epoch) if record else (EngineAbout(), 0)
    if life.about and (record is None or about_epoch != said.epoch):
        about, about_epoch = life.about, said.epoch
    return EngineRecord(
        engine=name,
        process_epoch=said.epoch,
        state=life.state,
        role=said.role,
        model=said.model,
        shard=said.shard,
        host=said.host,
        about=about,
        about_epoch=about_epoch,
        created_ms=record.created_ms if record else 0,
        updated_ms=record.updated_ms if record else 0,
        revision=record.revision if record else 0,
    )
