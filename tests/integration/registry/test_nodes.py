"""Nodes and accounts over a real server: records by revision, leases, probes, sessions."""

import asyncio
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bus.records import Records
from schemas.access import (
    Login,
    LoginReply,
    PutUser,
    PutUserReply,
    RefreshSession,
    RefreshSessionReply,
    ShowSigningKeys,
    ShowSigningKeysReply,
)
from schemas.nodes import (
    Caller,
    ListNodes,
    ListNodesReply,
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


def register(name: str = "n1", **fields: Any) -> RegisterNode:
    changes = NodeChanges.model_validate({"node_status": "online", **fields})
    return RegisterNode(caller=ADMIN, node_id=name, changes=changes)


def update(name: str = "n1", revision: int = 0, **fields: Any) -> UpdateNode:
    changes = NodeChanges.model_validate(fields)
    return UpdateNode(caller=ADMIN, node_id=name, changes=changes, revision=revision)


async def test_what_was_registered_is_there_after_a_restart(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    async with registry(nats_server, nats_bus):
        made = await ask(operator, register(remark="a"), RegisterNodeReply)
        changed = await ask(operator, update(remark="b"), UpdateNodeReply)
        assert changed.node.revision > made.node.revision
    async with registry(nats_server, nats_bus):
        shown = await ask(operator, ShowNode(node_id="n1"), ShowNodeReply)
        assert shown.node == changed.node
        listed = await ask(operator, ListNodes(), ListNodesReply)
        assert listed.nodes == (changed.node,)


async def test_a_record_that_somebody_else_changed_is_looked_at_again(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    key = nats_server.key_file("registry", "registry-0")
    async with registry(nats_server, nats_bus):
        made = (await ask(operator, register(remark="a"), RegisterNodeReply)).node
        async with Records(nats_server.url, key, source="registry-0") as records:
            other = made.model_copy(update={"served_model_name": "theirs"})
            value = other.model_dump_json(exclude={"revision", "healthy"}).encode()
            await records.put("nodes", "n1", value, revision=made.revision)
        mine = await ask(operator, update(remark="mine"), UpdateNodeReply)
        assert (mine.node.served_model_name, mine.node.remark) == ("theirs", "mine")
        late = await ask(operator, update(revision=made.revision, remark="x"), UpdateNodeReply)
        assert late.refusal == "conflict"


async def test_a_lease_ends_and_is_told_and_a_word_brings_the_node_back(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    async with registry(nats_server, nats_bus) as service:
        told: list[str] = []
        publish = service._host.bus.publish

        def heard(subject: str, message: Any, **more: Any) -> None:
            if isinstance(message, NodeChanged):
                told.append(message.what)
            publish(subject, message, **more)

        service._host.bus.publish = heard  # type: ignore[method-assign]
        await ask(operator, register(timeout=1), RegisterNodeReply)
        await until(lambda: "expired" in told, "the lease ended")
        shown = await ask(operator, ShowNode(node_id="n1"), ShowNodeReply)
        assert shown.node.node_status == "offline"
        revision = shown.node.revision
        back = await ask(operator, update(), UpdateNodeReply)
        # A renewal writes nothing.
        assert (back.node.node_status, back.node.revision) == ("online", revision)
        assert told == ["registered", "expired", "returned"]


async def test_a_node_s_health_is_probed_and_recovers(nats_server: NatsInTest, nats_bus: MakeBus):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    status = [b"200 OK"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status[0])
        await writer.drain()
        writer.close()

    engine = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = engine.sockets[0].getsockname()[1]

    async def healthy() -> bool | None:
        shown = await ask(operator, ShowNode(node_id="n1"), ShowNodeReply)
        found: bool | None = shown.node.healthy
        return found

    async def becomes(value: bool) -> None:
        async with asyncio.timeout(20):
            while await healthy() is not value:  # noqa: ASYNC110  (a process's)
                await asyncio.sleep(0.05)

    quick: dict[str, Any] = {
        "probe_interval_s": 0.1,
        "probe_failures_max": 2,
        "probe_successes_min": 2,
    }
    async with engine, registry(nats_server, nats_bus, **quick):
        await ask(operator, register(node_address="127.0.0.1", node_port=port), RegisterNodeReply)
        await becomes(True)
        status[0] = b"302 Found\r\nlocation: http://127.0.0.1:1/"
        await becomes(False)
        status[0] = b"200 OK"
        await becomes(True)


async def test_a_login_gives_a_token_that_the_public_key_proves(
    nats_server: NatsInTest, nats_bus: MakeBus, tmp_path: Path
):
    await nats_server.provision()
    gateway = await nats_bus("gateway", "gateway-0")
    async with registry(nats_server, nats_bus, access_dir=str(tmp_path / "access")):
        password = (tmp_path / "access" / "admin.password").read_text().strip()
        wrong = await ask(gateway, Login(username="admin", password="no"), LoginReply)
        nobody = await ask(gateway, Login(username="eve", password="no"), LoginReply)
        assert wrong.refusal == nobody.refusal == "unauthorized"
        session = await ask(gateway, Login(username="admin", password=password), LoginReply)
        keys = await ask(gateway, ShowSigningKeys(), ShowSigningKeysReply)
        key = Ed25519PublicKey.from_public_bytes(keys.keys[0].public)
        claims = jwt.decode(session.access_token, key, algorithms=["EdDSA"], audience="registry")
        assert (claims["sub"], claims["roles"]) == ("admin", ["admin"])
        assert claims["exp"] - claims["iat"] == session.expires_s == 900
        again = await ask(
            gateway, RefreshSession(refresh_token=session.refresh_token), RefreshSessionReply
        )
        assert again.refusal is None
        stolen = await ask(
            gateway, RefreshSession(refresh_token=session.refresh_token), RefreshSessionReply
        )
        assert stolen.refusal == "unauthorized"


async def test_guessing_is_slowed_down(nats_server: NatsInTest, nats_bus: MakeBus, tmp_path: Path):
    await nats_server.provision()
    gateway = await nats_bus("gateway", "gateway-0")
    async with registry(nats_server, nats_bus, access_dir=str(tmp_path), login_per_user_min=2):
        guess = Login(username="admin", password="x", address="10.0.0.1")
        refusals = [(await ask(gateway, guess, LoginReply)).refusal for _ in range(3)]
        assert refusals == ["unauthorized", "unauthorized", "too_many"]


@pytest.mark.parametrize("insecure", [False, True])
async def test_a_name_alone_is_enough_only_behind_the_flag(
    nats_server: NatsInTest, nats_bus: MakeBus, tmp_path: Path, insecure: bool
):
    await nats_server.provision()
    gateway = await nats_bus("gateway", "gateway-0")
    async with registry(
        nats_server, nats_bus, access_dir=str(tmp_path), insecure_username_login=insecure
    ):
        reply = await ask(gateway, Login(username="user"), LoginReply)
        assert (reply.refusal is None) is insecure
        other = await ask(gateway, Login(username="eve"), LoginReply)
        assert other.refusal == "unauthorized"


async def test_accounts_are_made_changed_and_removed_by_the_operator(
    nats_server: NatsInTest, nats_bus: MakeBus, tmp_path: Path
):
    await nats_server.provision()
    operator, gateway = [
        await nats_bus(r, n) for r, n in (("operator",) * 2, ("gateway", "gateway-0"))
    ]
    async with registry(nats_server, nats_bus, access_dir=str(tmp_path)):
        half = await ask(operator, PutUser(username="n1", roles=("node",)), PutUserReply)
        assert (half.done, half.detail) == (False, "a new account needs a password and a role")
        made = await ask(
            operator, PutUser(username="n1", password="pw", roles=("node",)), PutUserReply
        )
        assert made.done
        session = await ask(gateway, Login(username="n1", password="pw"), LoginReply)
        assert session.refusal is None
        gone = await ask(operator, PutUser(username="n1", remove=True), PutUserReply)
        assert gone.done
        refresh = RefreshSession(refresh_token=session.refresh_token)
        assert (await ask(gateway, refresh, RefreshSessionReply)).refusal == "unauthorized"
        missing = await ask(operator, PutUser(username="n1", remove=True), PutUserReply)
        assert not missing.done
