"""The nodes that somebody declared: records with a revision, leases on our clock. Pure.

A change is decided on the record as it is known here and written by compare-and-set; what was
written is then told with ``stored``. So two registries, or one that was cut off, never overwrite
each other unseen.

A lease is renewed by every register and update, and is no record: after a start of the registry all
leases begin anew. A node whose lease ended is shown ``offline``, whatever it declared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from components.registry.refused import Refused
from schemas.nodes import (
    Caller,
    DeleteNode,
    ListNodes,
    Node,
    NodeChanges,
    NodeEvent,
    NodeRefusal,
    NodeState,
    RegisterNode,
    UpdateNode,
)

#: From which state a node may go where. A registration may begin anywhere.
TRANSITIONS: Final[dict[NodeState, frozenset[NodeState]]] = {
    "STARTING": frozenset({"READY", "ERROR", "STOPPED"}),
    "READY": frozenset({"DRAINING", "ERROR", "STOPPED"}),
    "DRAINING": frozenset({"READY", "ERROR", "STOPPED"}),
    "STOPPED": frozenset({"STARTING"}),
    "ERROR": frozenset({"STARTING", "STOPPED"}),
}


class NodeRefused(Refused[NodeRefusal]):
    """The change is not made."""


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``node`` (None: delete it) where the record still has ``expected`` as its revision."""

    node_id: str
    node: Node | None
    expected: int
    what: NodeEvent


@dataclass(slots=True)
class Known:
    """One record, when it was last heard of, and whether its lease was seen to end."""

    node: Node
    heard_s: float
    expired: bool = False
    failures: int = 0
    successes: int = 0


@dataclass(slots=True)
class NodeTable:
    """All nodes; a new one beyond ``nodes_max`` is refused."""

    nodes_max: int = 4096
    _nodes: dict[str, Known] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._nodes)

    # What is known.

    def stored(self, node: Node, now_s: float) -> None:
        """The record is as ``node`` says: it was read, or just written."""
        known = self._nodes.get(node.node_id)
        if known is None:
            self._nodes[node.node_id] = Known(node, now_s)
        elif node.revision >= known.node.revision:
            known.node = node

    def read(self, node: Node, now_s: float) -> None:
        """The record says so; what probes of the same address have found stands."""
        known = self._nodes.get(node.node_id)
        if known is not None and _address(known.node) == _address(node):
            node = node.model_copy(update={"healthy": known.node.healthy})
        self.stored(node, now_s)

    def names(self) -> set[str]:
        return set(self._nodes)

    def revision(self, node_id: str) -> int:
        """Of the record as it is known; 0: of none."""
        known = self._nodes.get(node_id)
        return known.node.revision if known else 0

    def gone(self, node_id: str) -> None:
        """There is no such record any more."""
        self._nodes.pop(node_id, None)

    def show(self, node_id: str, now_s: float) -> Node:
        """Raises ``NodeRefused``."""
        known = self._nodes.get(node_id)
        if known is None:
            raise NodeRefused("not_found", f"there is no node {node_id!r}")
        return self._shown(known, now_s)

    def page(self, asked: ListNodes, now_s: float) -> tuple[tuple[Node, ...], bool]:
        """A page by the order of ids, and whether more follow."""
        names = sorted(name for name in self._nodes if name > asked.after)
        nodes = (self._shown(self._nodes[name], now_s) for name in names)
        shown = [node for node in nodes if asked.status in {None, node.node_status}]
        return tuple(shown[: asked.limit]), len(shown) > asked.limit

    def _shown(self, known: Known, now_s: float) -> Node:
        lives = now_s - known.heard_s <= known.node.timeout
        if lives or known.node.node_status == "offline":
            return known.node
        return known.node.model_copy(update={"node_status": "offline"})

    # What shall change.

    def register(self, asked: RegisterNode, wall_ms: int) -> Put:
        """Written anew, defaults for what is not said; raises ``NodeRefused``."""
        self._may_write(asked.caller, asked.node_id)
        known = self._nodes.get(asked.node_id)
        if known is None and len(self._nodes) >= self.nodes_max:
            raise NodeRefused("full", f"there are {self.nodes_max} nodes: delete some")
        created_ms = known.node.create_time if known else wall_ms
        said = _said(asked.changes)
        node = Node(node_id=asked.node_id, create_time=created_ms, update_time=wall_ms, **said)
        return Put(asked.node_id, node, known.node.revision if known else 0, "registered")

    def update(self, asked: UpdateNode, wall_ms: int) -> Put:
        """What is said is set, all else stays; raises ``NodeRefused``."""
        self._may_write(asked.caller, asked.node_id)
        node = self._current(asked.node_id, asked.revision)
        state = asked.changes.state
        if state not in {None, node.state} and state not in TRANSITIONS[node.state]:
            raise NodeRefused(
                "bad_transition",
                f"{node.state} becomes {', '.join(sorted(TRANSITIONS[node.state]))}, not {state}",
            )
        changed = node.model_copy(update={**_said(asked.changes), "update_time": wall_ms})
        return Put(asked.node_id, changed, node.revision, "updated")

    def delete(self, asked: DeleteNode) -> Put:
        """Raises ``NodeRefused``."""
        if "admin" not in asked.caller.roles:
            raise NodeRefused("forbidden", "only an admin deletes nodes")
        node = self._current(asked.node_id, asked.revision)
        return Put(asked.node_id, None, node.revision, "deleted")

    def is_renewal(self, asked: UpdateNode) -> bool:
        """Does it say nothing new? Then the lease is renewed and nothing is written."""
        known = self._nodes.get(asked.node_id)
        if known is None or asked.revision not in {0, known.node.revision}:
            return False
        return all(getattr(known.node, name) == v for name, v in _said(asked.changes).items())

    def _current(self, node_id: str, revision: int) -> Node:
        known = self._nodes.get(node_id)
        if known is None:
            raise NodeRefused("not_found", f"there is no node {node_id!r}")
        if revision not in {0, known.node.revision}:
            raise NodeRefused(
                "conflict", f"it is at revision {known.node.revision}, not {revision}: look again"
            )
        return known.node

    @staticmethod
    def _may_write(caller: Caller, node_id: str) -> None:
        """An admin may; a node may, of itself."""
        if "admin" in caller.roles or ("node" in caller.roles and caller.name == node_id):
            return
        raise NodeRefused("forbidden", f"{caller.name} may not change node {node_id!r}")

    # Leases.

    def renew(self, node_id: str, now_s: float) -> bool:
        """It was heard of; whether it comes back from an ended lease."""
        known = self._nodes.get(node_id)
        if known is None:
            return False
        known.heard_s, was = now_s, known.expired
        known.expired = False
        return was

    def on_tick(self, now_s: float) -> list[str]:
        """Nodes whose lease ended since the last time, once each."""
        ended = []
        for node_id, known in self._nodes.items():
            late = now_s - known.heard_s > known.node.timeout
            if late and not known.expired and known.node.node_status == "online":
                known.expired = True
                ended.append(node_id)
        return ended

    def begin_leases(self, now_s: float) -> None:
        """Nobody could be heard until now: all leases begin anew."""
        for known in self._nodes.values():
            known.heard_s = now_s

    # Health.

    def to_probe(self, now_s: float) -> Iterator[Node]:
        """Nodes that say that they are online, by the order of their ids."""
        for node_id in sorted(self._nodes):
            node = self._shown(self._nodes[node_id], now_s)
            if node.node_status == "online":
                yield node

    def probed(
        self, node_id: str, *, well: bool, failures_max: int, successes_min: int
    ) -> NodeEvent | None:
        """Take one probe's result; what changed by it, if anything.

        ``failures_max`` in a row and a node is unhealthy, ``successes_min`` and it is again.
        """
        known = self._nodes.get(node_id)
        if known is None:
            return None
        known.failures = 0 if well else known.failures + 1
        known.successes = known.successes + 1 if well else 0
        healthy = known.node.healthy
        if well and healthy is not True and (healthy is None or known.successes >= successes_min):
            known.node = known.node.model_copy(update={"healthy": True})
            return "recovered" if healthy is False else None
        if not well and healthy is not False and known.failures >= failures_max:
            known.node = known.node.model_copy(update={"healthy": False})
            return "unhealthy"
        return None


def _address(node: Node) -> tuple[str, int]:
    return node.node_address, node.node_port


def _said(changes: NodeChanges) -> dict[str, Any]:
    """The fields that are to be set."""
    values = ((name, getattr(changes, name)) for name in NodeChanges.model_fields)
    return {name: value for name, value in values if value is not None}
