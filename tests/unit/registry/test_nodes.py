"""Nodes: true partial updates, revisions, leases, states, health."""

import pytest

from components.registry.nodes import TRANSITIONS, NodeRefused, NodeTable, Put
from schemas.nodes import (
    Caller,
    DeleteNode,
    ListNodes,
    Node,
    NodeChanges,
    NodeRefusal,
    RegisterNode,
    UpdateNode,
)

ADMIN = Caller(name="root", roles=("admin",))
USER = Caller(name="eve", roles=("user",))
SELF = Caller(name="n1", roles=("node",))


def stored(table: NodeTable, put: Put, revision: int, now_s: float = 0.0) -> Node:
    assert put.node is not None
    node = put.node.model_copy(update={"revision": revision})
    table.stored(node, now_s)
    table.renew(node.node_id, now_s)
    return node


def registered(table: NodeTable, name: str = "n1", **fields: object) -> Node:
    changes = NodeChanges.model_validate({"node_status": "online", **fields})
    asked = RegisterNode(caller=ADMIN, node_id=name, changes=changes)
    return stored(table, table.register(asked, 1000), 1)


def update(
    node_id: str = "n1", caller: Caller = ADMIN, revision: int = 0, **fields: object
) -> UpdateNode:
    changes = NodeChanges.model_validate(fields)
    return UpdateNode(caller=caller, node_id=node_id, changes=changes, revision=revision)


def refused(reason: NodeRefusal, table: NodeTable, asked: UpdateNode) -> None:
    with pytest.raises(NodeRefused) as why:
        table.update(asked, 2000)
    assert why.value.reason == reason


def test_a_registration_has_the_older_service_s_defaults():
    node = stored(
        table := NodeTable(), table.register(RegisterNode(caller=ADMIN, node_id="n1"), 5), 1
    )
    assert (node.node_type, node.node_address, node.node_port) == ("master", "0.0.0.0", 8000)
    assert (node.node_status, node.timeout, node.served_model_name) == ("offline", 60, "")
    assert (node.node_info.running, node.node_info.waiting, node.node_info.kv_cache) == (0, 0, 0)
    assert node.create_time == node.update_time == 5


def test_an_update_sets_what_is_said_and_nothing_else():
    table = NodeTable()
    before = registered(table, node_address="10.0.0.1", served_model_name="m", remark="a")
    put = table.update(update(remark="b"), 2000)
    assert put.node == before.model_copy(update={"remark": "b", "update_time": 2000})
    assert (put.expected, put.what) == (1, "updated")


def test_a_registration_again_writes_it_anew_and_keeps_when_it_was_made():
    table = NodeTable()
    registered(table, remark="a")
    put = table.register(RegisterNode(caller=ADMIN, node_id="n1"), 9000)
    assert put.node is not None
    assert (put.node.remark, put.node.create_time, put.expected) == ("", 1000, 1)


def test_who_asks_for_another_revision_is_told_of_the_conflict():
    table = NodeTable()
    registered(table)
    assert table.update(update(revision=1, remark="x"), 1).expected == 1
    refused("conflict", table, update(revision=2, remark="x"))
    refused("not_found", table, update("n2"))


def test_a_node_writes_itself_an_admin_all_a_user_none():
    table = NodeTable()
    registered(table)
    registered(table, "n2")
    assert table.update(update(caller=SELF, remark="x"), 1).node
    refused("forbidden", table, update("n2", caller=SELF))
    refused("forbidden", table, update(caller=USER))
    with pytest.raises(NodeRefused, match="eve may not change"):
        table.register(RegisterNode(caller=USER, node_id="n3"), 1)
    with pytest.raises(NodeRefused, match="n1 may not change"):
        table.register(RegisterNode(caller=SELF, node_id="n2"), 1)
    assert table.register(RegisterNode(caller=SELF, node_id="n1"), 1).node
    for caller in (USER, SELF):
        with pytest.raises(NodeRefused, match="only an admin"):
            table.delete(DeleteNode(caller=caller, node_id="n1"))
    assert table.delete(DeleteNode(caller=ADMIN, node_id="n1")).node is None


def test_states_follow_the_table():
    table = NodeTable()
    registered(table, state="READY")
    assert table.update(update(state="DRAINING"), 1).node
    refused("bad_transition", table, update(state="STARTING"))
    assert all(target != source for source, targets in TRANSITIONS.items() for target in targets)


def test_a_lease_that_ended_makes_a_node_offline_once_and_a_word_of_it_brings_it_back():
    table = NodeTable()
    registered(table, timeout=10)
    assert table.show("n1", 10.0).node_status == "online"
    assert table.on_tick(10.0) == []
    assert table.on_tick(10.1) == ["n1"]
    assert table.on_tick(11.0) == []
    assert table.show("n1", 11.0).node_status == "offline"
    assert table.renew("n1", 12.0) is True
    assert table.show("n1", 12.0).node_status == "online"
    assert table.renew("n1", 13.0) is False


def test_after_a_pause_of_the_bus_leases_begin_anew():
    table = NodeTable()
    registered(table, timeout=10)
    table.begin_leases(100.0)
    assert table.on_tick(105.0) == []


def test_an_update_that_says_nothing_new_is_a_renewal():
    table = NodeTable()
    registered(table, remark="a")
    assert table.is_renewal(update())
    assert table.is_renewal(update(remark="a"))
    assert not table.is_renewal(update(remark="b"))
    assert not table.is_renewal(update(revision=9))
    assert not table.is_renewal(update("n2"))


def test_nodes_are_listed_in_pages_and_by_the_status_that_their_lease_gives_them():
    table = NodeTable()
    for number in range(5):
        registered(table, f"n{number}", timeout=10 if number == 3 else 100)
    nodes, more = table.page(ListNodes(limit=2), 0.0)
    assert ([n.node_id for n in nodes], more) == (["n0", "n1"], True)
    nodes, more = table.page(ListNodes(after="n1", limit=9), 0.0)
    assert ([n.node_id for n in nodes], more) == (["n2", "n3", "n4"], False)
    # Exactly as many as there are: nothing follows.
    nodes, more = table.page(ListNodes(after="n1", limit=3), 0.0)
    assert ([n.node_id for n in nodes], more) == (["n2", "n3", "n4"], False)
    nodes, _ = table.page(ListNodes(status="offline"), 50.0)
    assert [n.node_id for n in nodes] == ["n3"]


def test_the_table_is_bounded():
    table = NodeTable(nodes_max=1)
    registered(table)
    with pytest.raises(NodeRefused, match="delete some"):
        table.register(RegisterNode(caller=ADMIN, node_id="n2"), 1)
    assert table.register(RegisterNode(caller=ADMIN, node_id="n1"), 1).expected == 1


def test_an_older_record_never_overwrites_a_newer_one():
    table = NodeTable()
    node = registered(table)
    table.stored(node.model_copy(update={"revision": 5, "remark": "new"}), 0.0)
    table.stored(node.model_copy(update={"revision": 4, "remark": "old"}), 0.0)
    assert table.show("n1", 0.0).remark == "new"
    table.gone("n1")
    with pytest.raises(NodeRefused, match="there is no node"):
        table.show("n1", 0.0)


def test_a_record_read_again_at_its_revision_counts_and_what_probes_found_stands():
    table = NodeTable()
    node = registered(table, remark="old")
    table.probed("n1", well=True, failures_max=1, successes_min=1)
    # A bucket that was made anew counts its revisions from the start.
    table.read(node.model_copy(update={"remark": "new"}), 0.0)
    assert (table.show("n1", 0.0).remark, table.show("n1", 0.0).healthy) == ("new", True)
    table.read(node.model_copy(update={"node_port": 9}), 0.0)
    assert table.show("n1", 0.0).healthy is None


def test_health_falls_after_failures_in_a_row_and_comes_back_after_successes():
    table = NodeTable()
    registered(table)

    def probe(well: bool) -> str | None:
        return table.probed("n1", well=well, failures_max=3, successes_min=2)

    assert [probe(well=True)] == [None]
    assert table.show("n1", 0.0).healthy is True
    assert [probe(w) for w in (False, False, True, False, False, False)] == [
        None,
        None,
        None,
        None,
        None,
        "unhealthy",
    ]
    assert table.show("n1", 0.0).healthy is False
    assert [probe(w) for w in (True, False, True, True)] == [None, None, None, "recovered"]
    assert [n.node_id for n in table.to_probe(0.0)] == ["n1"]
    assert list(table.to_probe(1e9)) == []
