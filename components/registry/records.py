"""Nodes, accounts and keys as records: JSON in buckets, written by compare-and-set."""

from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from bus.errors import RecordChanged, StreamUnavailable
from bus.records import Records
from components.host.host import Host
from components.registry.nodes import NodeRefused, NodeTable, Put
from schemas.nodes import Node

NODES: Final = "nodes"


class NodeRecords:
    """What the table decides, made durable."""

    def __init__(self, host: Host, records: Records, table: NodeTable) -> None:
        self._host = host
        self._records = records
        self._table = table
        self.loaded = False

    async def load(self) -> None:
        """Read every record; raises ``StreamUnavailable``."""
        now_s = self._host.clock.now_s()
        for record in await self._records.all(NODES):
            node = self._node(record.value, record.revision)
            if node is not None:
                self._table.stored(node, now_s)
        self.loaded = True

    async def write(self, decide: Callable[[], Put]) -> tuple[Put, Node | None]:
        """Do what is decided; once more when somebody else was faster. Raises ``NodeRefused``."""
        if not self.loaded:
            raise NodeRefused("store_away", "the records could not be read yet: try again")
        for attempt in (1, 2):
            put = decide()
            try:
                return put, await self._write(put)
            except RecordChanged:
                await self._look_again(put.node_id)
                if attempt == 2:
                    raise NodeRefused("conflict", "it changes all the time: try again") from None
            except StreamUnavailable as error:
                raise NodeRefused("store_away", f"{error}: try again") from error
        raise AssertionError("two attempts end in one of the ways above")

    async def _write(self, put: Put) -> Node | None:
        if put.node is None:
            await self._records.delete(NODES, put.node_id, revision=put.expected)
            self._table.gone(put.node_id)
            return None
        value = put.node.model_dump_json(exclude={"revision", "healthy"}).encode()
        revision = await self._records.put(NODES, put.node_id, value, revision=put.expected)
        node = put.node.model_copy(update={"revision": revision})
        self._table.stored(node, self._host.clock.now_s())
        return node

    async def _look_again(self, node_id: str) -> None:
        record = await self._records.get(NODES, node_id)
        node = self._node(record.value, record.revision) if record else None
        if node is None:
            self._table.gone(node_id)
        else:
            self._table.stored(node, self._host.clock.now_s())

    def _node(self, value: bytes, revision: int) -> Node | None:
        try:
            return Node.model_validate_json(value).model_copy(update={"revision": revision})
        except ValidationError:
            self._host.counters.add("records_unreadable_total")
            return None
