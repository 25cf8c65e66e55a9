"""Answers for nodes: register, update, delete, show, list; leases and probes beside them."""

from collections.abc import Callable
from typing import Final, TypeVar

from bus import subjects
from bus.bus import Received
from bus.records import Records
from bus.subjects import ANY
from components.host.host import Host
from components.registry.looks import FirstLooks, Looks
from components.registry.node_records import NodeRecords
from components.registry.nodes import NodeRefused, NodeTable, Put
from components.registry.probing import Prober
from components.registry.questions import Questions
from components.registry.settings import RegistrySettings
from schemas.message import Message
from schemas.nodes import (
    Caller,
    DeleteNode,
    DeleteNodeReply,
    ListNodes,
    ListNodesReply,
    NodeChanged,
    NodeEvent,
    NodeHeard,
    RegisterNode,
    RegisterNodeReply,
    ShowNode,
    ShowNodeReply,
    UpdateNode,
    UpdateNodeReply,
)

Q = TypeVar("Q", bound=Message)
Change = TypeVar("Change", RegisterNode, UpdateNode, DeleteNode)
R = TypeVar("R", RegisterNodeReply, UpdateNodeReply, DeleteNodeReply)


#: Of what is told of nodes: that the record is another one.
WRITTEN: Final[frozenset[NodeEvent]] = frozenset({"registered", "updated", "deleted"})


class NodeService:
    """The part of the registry that keeps nodes."""

    def __init__(self, host: Host, settings: RegistrySettings, records: Records) -> None:
        self._host = host
        self._settings = settings
        self._table = NodeTable(settings.nodes_max)
        self._records = NodeRecords(host, records, self._table)
        self._looks = Looks(
            host, "the records of nodes", self._records.read_all, self._records.read
        )
        self._first_looks = FirstLooks(host, "the records of nodes", self._records.find)
        self._prober = Prober(host, settings, self._table, self._changed)
        self._questions = Questions(host)

    async def start(self) -> None:
        questions = self._questions
        await questions.answer(RegisterNode, self._register)
        await questions.answer(UpdateNode, self._update)
        await questions.answer(DeleteNode, self._delete)
        await questions.answer(ShowNode, self._show)
        await questions.answer(ListNodes, self._list)
        await questions.hear(subjects.node_changed(ANY), NodeChanged, self._on_changed)
        await questions.hear(subjects.node_heard(ANY), NodeHeard, self._on_heard)
        self._host.tasks.every("nodes.tick", 1.0, self._tick)
        self._prober.start()
        self._looks.start()

    async def stop(self) -> None:
        await self._questions.stop()
        await self._prober.stop()

    def resume(self) -> None:
        """The bus was away: no node could be heard, and others may have written."""
        self._table.begin_leases(self._host.clock.now_s())
        self._looks.at_all()

    # What other registries do.

    def _on_changed(self, received: Received[NodeChanged]) -> None:
        event = received.message
        if event.what in WRITTEN:
            self._looks.at(event.node_id, None if event.what == "deleted" else event.revision)

    def _on_heard(self, received: Received[NodeHeard]) -> None:
        node_id = received.message.node_id
        if self._table.renew(node_id, self._host.clock.now_s()):
            self._changed(node_id, "returned")

    # Changes.

    def _register(self, asked: Received[RegisterNode]) -> None:
        self._change(
            asked,
            lambda: self._table.register(asked.message, self._host.clock.wall_ms()),
            RegisterNodeReply,
        )

    def _update(self, asked: Received[UpdateNode]) -> None:
        if self._table.is_renewal(asked.message):
            self._renew(asked)
        else:
            self._change(asked, lambda: self._updated(asked.message), UpdateNodeReply)

    def _renew(self, asked: Received[UpdateNode]) -> None:
        """Nothing new is said: whoever may say it renews the lease, and nothing is written."""
        message = asked.message
        try:
            _ = self._updated(message)
        except NodeRefused as why:
            self._refuse(asked, UpdateNodeReply, why)
            return
        self._renewed(message.node_id, message.caller)
        node = self._table.show(message.node_id, self._host.clock.now_s())
        self._host.bus.respond(asked, UpdateNodeReply(node=node))

    def _updated(self, message: UpdateNode) -> Put:
        return self._table.update(message, self._host.clock.wall_ms())

    def _delete(self, asked: Received[DeleteNode]) -> None:
        self._change(asked, lambda: self._table.delete(asked.message), DeleteNodeReply)

    def _change(self, asked: Received[Change], decide: Callable[[], Put], reply: type[R]) -> None:
        _ = self._host.tasks.spawn("nodes.change", self._write(asked, decide, reply))

    async def _write(
        self, asked: Received[Change], decide: Callable[[], Put], reply: type[R]
    ) -> None:
        message = asked.message
        try:
            put, node = await self._records.write(message.node_id, decide)
        except NodeRefused as why:
            self._refuse(asked, reply, why)
            return
        revision = 0
        if put.node is not None:
            self._renewed(node.node_id, message.caller)
            node = self._table.show(node.node_id, self._host.clock.now_s())
            revision = node.revision
        self._changed(put.node_id, put.what, message.caller, revision)
        self._host.bus.respond(asked, reply(node=node))

    def _refuse(self, asked: Received[Change], reply: type[R], why: NodeRefused) -> None:
        self._host.counters.add(f"nodes_refused_{why.reason}_total")
        self._host.bus.respond(asked, reply(refusal=why.reason, detail=str(why)))

    def _renewed(self, node_id: str, caller: Caller) -> None:
        heard = NodeHeard(node_id=node_id)
        self._host.bus.publish(subjects.node_heard(self._host.instance), heard)
        if self._table.renew(node_id, self._host.clock.now_s()):
            self._changed(node_id, "returned", caller)

    def _changed(
        self, node_id: str, what: NodeEvent, caller: Caller | None = None, revision: int = 0
    ) -> None:
        event = NodeChanged(
            node_id=node_id,
            what=what,
            by=caller.name if caller else "",
            revision=revision,
            trace_id=caller.trace_id if caller else "",
            at_ms=self._host.clock.wall_ms(),
        )
        self._host.bus.publish(subjects.node_changed(node_id), event)
        self._host.log.info("node %s %s by %s", node_id, what, event.by or "its lease")

    def _tick(self) -> None:
        if not self._host.bus.connected:
            return
        for node_id in self._table.on_tick(self._host.clock.now_s()):
            self._changed(node_id, "expired")
        self._host.counters["nodes"] = len(self._table)

    # Questions.

    def _show(self, asked: Received[ShowNode]) -> None:
        node_id = asked.message.node_id

        def answer() -> None:
            self._answer(asked, lambda: self._shown(node_id), ShowNodeReply)

        if self._records.loaded and not self._table.revision(node_id):
            self._first_looks.then(node_id, answer)
        else:
            answer()

    def _shown(self, node_id: str) -> ShowNodeReply:
        return ShowNodeReply(node=self._table.show(node_id, self._host.clock.now_s()))

    def _list(self, asked: Received[ListNodes]) -> None:
        self._answer(asked, lambda: self._page(asked.message), ListNodesReply)

    def _page(self, asked: ListNodes) -> ListNodesReply:
        nodes, more = self._table.page(asked, self._host.clock.now_s())
        return ListNodesReply(nodes=nodes, more=more)

    def _answer(
        self,
        asked: Received[Q],
        find: Callable[[], Message],
        refused: type[ShowNodeReply] | type[ListNodesReply],
    ) -> None:
        reply: Message
        try:
            self._check_loaded()
            reply = find()
        except NodeRefused as why:
            reply = refused(refusal=why.reason, detail=str(why))
        self._host.bus.respond(asked, reply)

    def _check_loaded(self) -> None:
        if not self._records.loaded:
            raise NodeRefused("store_away", "the records could not be read yet: try again")
