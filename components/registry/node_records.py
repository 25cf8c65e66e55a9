"""The table of nodes, made durable: JSON in a bucket, written by compare-and-set."""

from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from bus.records import Record, Records
from components.host.host import Host
from components.registry.mirror import Mirror
from components.registry.nodes import NodeRefused, NodeTable, Put
from schemas.nodes import Node, NodeRefusal

NODES: Final = "nodes"
#: Refusals that what another registry wrote a moment ago may undo.
MAY_BE_STALE: Final[frozenset[NodeRefusal]] = frozenset({"not_found", "conflict", "bad_transition"})


class NodeRecords(Mirror):
    """What the table decides, written; what stands in the bucket, read."""

    def __init__(self, host: Host, records: Records, table: NodeTable) -> None:
        super().__init__(host, records, NODES, table)
        self._table = table

    async def write(self, node_id: str, decide: Callable[[], Put]) -> tuple[Put, Node]:
        """Do what is decided; the record as it stands now, or as it was deleted.

        Raises ``NodeRefused``.
        """

        async def attempt() -> tuple[Put, Node]:
            put = decide()
            return put, await self._write(put)

        return await self.change(node_id, attempt, NodeRefused, MAY_BE_STALE)

    async def _write(self, put: Put) -> Node:
        now_s = self._host.clock.now_s()
        if put.node is None:
            before = self._table.show(put.node_id, now_s)
            await self._records.delete(NODES, put.node_id, revision=put.expected)
            self._table.gone(put.node_id)
            return before
        value = put.node.model_dump_json(exclude={"revision", "healthy"}).encode()
        revision = await self._records.put(NODES, put.node_id, value, revision=put.expected)
        node = put.node.model_copy(update={"revision": revision})
        self._table.stored(node, now_s)
        return node

    def _take(self, record: Record) -> bool:
        try:
            node = Node.model_validate_json(record.value)
        except ValidationError:
            self._host.counters.add("records_unreadable_total")
            return False
        node = node.model_copy(update={"revision": record.revision})
        self._table.read(node, self._host.clock.now_s())
        return True
