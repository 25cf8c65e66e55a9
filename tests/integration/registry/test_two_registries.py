"""Two registries at one bucket: either may answer, and both know the same nodes."""

import asyncio
from typing import Any

from bus import subjects
from bus.records import Records
from bus.subjects import ANY
from components.registry.service import RegistryService
from schemas.nodes import (
    Caller,
    DeleteNode,
    DeleteNodeReply,
    ListNodes,
    ListNodesReply,
    Node,
    NodeChanged,
    NodeChanges,
    RegisterNode,
    RegisterNodeReply,
    ShowNode,
    ShowNodeReply,
    UpdateNode,
    UpdateNodeReply,
)
from tests.integration.registry.serving import MakeBus, ask, registry
from tests.support.nats import NatsInTest, until

ADMIN = Caller(name="root", roles=("admin",))


def known(service: RegistryService) -> dict[str, Node]:
    """What this registry would show."""
    nodes, _ = service._nodes._table.page(ListNodes(), service._host.clock.now_s())
    return {node.node_id: node for node in nodes}


def registration(name: str, **fields: Any) -> RegisterNode:
    changes = NodeChanges.model_validate({"node_status": "online", **fields})
    return RegisterNode(caller=ADMIN, node_id=name, changes=changes)


def update(name: str, **fields: Any) -> UpdateNode:
    changes = NodeChanges.model_validate(fields)
    return UpdateNode(caller=ADMIN, node_id=name, changes=changes)


async def test_what_one_registry_wrote_both_know(nats_server: NatsInTest, nats_bus: MakeBus):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    async with (
        registry(nats_server, nats_bus, "registry-0") as one,
        registry(nats_server, nats_bus, "registry-1") as two,
    ):

        async def agree(names: set[str]) -> None:
            await until(lambda: known(one) == known(two) and set(known(one)) == names, "they agree")

        names = {f"n{number}" for number in range(10)}
        for name in sorted(names):
            made = await ask(operator, registration(name), RegisterNodeReply)
            assert made.refusal is None
            # At once, of whoever it is that answers.
            shown = await ask(operator, ShowNode(node_id=name), ShowNodeReply)
            assert shown.node == made.node
            changed = await ask(operator, update(name, remark="x"), UpdateNodeReply)
            assert changed.node.remark == "x"
        await agree(names)
        # Each change is asked of either, decided on what the other wrote.
        for number in range(20):
            changed = await ask(operator, update("n1", remark=str(number)), UpdateNodeReply)
            assert changed.node.remark == str(number)
        await agree(names)
        assert known(one)["n1"].remark == "19"
        for name in ("n2", "n3", "n4"):
            asked = DeleteNode(caller=ADMIN, node_id=name)
            assert (await ask(operator, asked, DeleteNodeReply)).refusal is None
        await agree(names - {"n2", "n3", "n4"})
        for _ in range(6):  # whoever is asked
            listed = await ask(operator, ListNodes(), ListNodesReply)
            assert {node.node_id: node for node in listed.nodes} == known(one)
        key = nats_server.key_file("registry", "registry-0")
        async with Records(nats_server.url, key, source="registry-0") as records:
            before = await records.all("nodes")
            assert {r.name: r.revision for r in before} == {
                name: node.revision for name, node in known(one).items()
            }
            await asyncio.sleep(1.5)
            assert await records.all("nodes") == before


async def test_a_sign_of_life_that_one_registry_answers_counts_at_both(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    told: list[str] = []
    listener = await nats_bus("registry", "registry-9")
    await listener.subscribe(
        subjects.node_changed(ANY), NodeChanged, lambda r: told.append(r.message.what)
    )
    async with (
        registry(nats_server, nats_bus, "registry-0") as one,
        registry(nats_server, nats_bus, "registry-1") as two,
    ):
        await ask(operator, registration("n1", timeout=1), RegisterNodeReply)
        await until(lambda: "n1" in known(one) and "n1" in known(two), "both know it")
        for _ in range(8):  # half of them is answered by the other one, for twice the lease
            await ask(operator, update("n1"), UpdateNodeReply)
            await asyncio.sleep(0.25)
        statuses = [known(service)["n1"].node_status for service in (one, two)]
        assert (statuses, told) == (["online", "online"], ["registered"])
        eve = Caller(name="eve", roles=("user",))
        for _ in range(6):  # a word of somebody who may not say it is none of the node's
            foreign = UpdateNode(caller=eve, node_id="n1", changes=NodeChanges())
            assert (await ask(operator, foreign, UpdateNodeReply)).refusal == "forbidden"
            await asyncio.sleep(0.25)
        await until(lambda: told.count("expired") == 2, "each says that the lease ended")
        statuses = [known(service)["n1"].node_status for service in (one, two)]
        assert statuses == ["offline", "offline"]


async def test_what_was_written_while_one_was_cut_off_it_reads_when_it_is_back(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    async with registry(nats_server, nats_bus) as service:
        for name in ("n1", "n2"):
            await ask(operator, registration(name), RegisterNodeReply)
        key = nats_server.key_file("registry", "registry-0")
        async with Records(nats_server.url, key, source="registry-0") as records:
            # As another registry would, of which this one heard nothing.
            before = {record.name: record for record in await records.all("nodes")}
            value = Node(node_id="n1", remark="theirs").model_dump_json().encode()
            await records.put("nodes", "n1", value, revision=before["n1"].revision)
            await records.delete("nodes", "n2", revision=before["n2"].revision)
        assert set(known(service)) == {"n1", "n2"}
        await nats_server.kill()
        await nats_server.start()
        await until(lambda: set(known(service)) == {"n1"}, "what was deleted is gone")
        assert known(service)["n1"].remark == "theirs"
