"""Nodes, accounts and keys as records: JSON in buckets, written by compare-and-set."""

from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from bus.errors import RecordChanged, RecordRefused, StreamUnavailable
from bus.records import Record, Records
from components.host.host import Host
from components.registry.looks import is_as_new
from components.registry.nodes import NodeRefused, NodeTable, Put
from schemas.nodes import Node, NodeRefusal

NODES: Final = "nodes"
#: Refusals that what another registry wrote a moment ago may undo.
MAY_BE_STALE: Final[frozenset[NodeRefusal]] = frozenset({"not_found", "conflict", "bad_transition"})


class NodeRecords:
    """What the table decides, made durable."""

    def __init__(self, host: Host, records: Records, table: NodeTable) -> None:
        self._host = host
        self._records = records
        self._table = table
        self.loaded = False

    async def read_all(self) -> None:
        """Every record; raises ``StreamUnavailable``."""
        found = await self._records.all(NODES)
        for record in found:
            self._take(record)
        for node_id in self._table.names() - {record.name for record in found}:
            await self.read(node_id)
        self.loaded = True

    async def read(self, node_id: str, revision: int | None = 0) -> bool:
        """One record; whether it is as new as ``revision``, None: as its removal.

        Raises ``StreamUnavailable``.
        """
        record = await self._records.get(NODES, node_id)
        known = self._table.revision(node_id)
        if record is None or not self._take(record):
            self._table.gone(node_id)
        return is_as_new(record, known, revision)

    async def find(self, node_id: str) -> None:
        """One that is not known here; raises ``StreamUnavailable``."""
        if record := await self._records.get(NODES, node_id):
            _ = self._take(record)

    async def write(self, node_id: str, decide: Callable[[], Put]) -> tuple[Put, Node]:
        """Do what is decided; the record as it stands now, or as it was deleted.

        Decided again, once, where another registry may have been faster. Raises ``NodeRefused``.
        """
        if not self.loaded:
            raise NodeRefused("store_away", "the records could not be read yet: try again")
        try:
            for last in (False, True):
                try:
                    put = decide()
                    return put, await self._write(put)
                except NodeRefused as why:
                    if last or why.reason not in MAY_BE_STALE:
                        raise
                except RecordChanged:
                    if last:
                        detail = "it changes all the time: try again"
                        raise NodeRefused("conflict", detail) from None
                await self.read(node_id)
        except RecordRefused as error:
            raise NodeRefused("full", str(error)) from error
        except StreamUnavailable as error:
            raise NodeRefused("store_away", f"{error}: try again") from error
        raise AssertionError("two attempts end in one of the ways above")

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
        """What was read, if it is a node."""
        try:
            node = Node.model_validate_json(record.value)
        except ValidationError:
            self._host.counters.add("records_unreadable_total")
            return False
        node = node.model_copy(update={"revision": record.revision})
        self._table.read(node, self._host.clock.now_s())
        return True
