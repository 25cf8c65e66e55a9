"""The key that signs sessions changes on a real server, under the permissions of each process."""

from pathlib import Path

import jwt
import pytest

from bus.errors import NoResponders
from bus.nats_bus import NatsBus
from schemas.access import (
    Login,
    LoginReply,
    PutUser,
    PutUserReply,
    RefreshSession,
    RefreshSessionReply,
    RotateSigningKey,
    RotateSigningKeyReply,
    ShowSigningKeys,
    ShowSigningKeysReply,
)
from tests.integration.registry.serving import MakeBus, ask, registry
from tests.support.nats import NatsInTest


async def told(bus: NatsBus) -> list[str]:
    reply = await ask(bus, ShowSigningKeys(), ShowSigningKeysReply)
    return [key.kid for key in reply.keys]


async def log_in(bus: NatsBus, folder: Path) -> LoginReply:
    password = (folder / "admin.password").read_text().strip()
    reply: LoginReply = await ask(bus, Login(username="admin", password=password), LoginReply)
    assert reply.refusal is None
    return reply


def signer(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def test_a_new_key_signs_and_the_former_one_is_told_through_a_restart(
    nats_server: NatsInTest, nats_bus: MakeBus, tmp_path: Path
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    gateway = await nats_bus("gateway", "gateway-0")
    async with registry(nats_server, nats_bus, access_dir=str(tmp_path)):
        session = await log_in(gateway, tmp_path)
        first = signer(session.access_token)
        rotated = await ask(operator, RotateSigningKey(), RotateSigningKeyReply)
        assert (rotated.done, rotated.grace_s, rotated.kid != first) == (True, 930, True)
        assert await told(gateway) == [rotated.kid, first]
        # A session goes on, and its next token is of the new key.
        refresh = RefreshSession(refresh_token=session.refresh_token)
        fresh = await ask(gateway, refresh, RefreshSessionReply)
        assert signer(fresh.access_token) == rotated.kid
    async with registry(nats_server, nats_bus, access_dir=str(tmp_path)):
        assert await told(gateway) == [rotated.kid, first]
        assert signer((await log_in(gateway, tmp_path)).access_token) == rotated.kid
        at_once = await ask(operator, RotateSigningKey(at_once=True), RotateSigningKeyReply)
        assert (at_once.done, at_once.grace_s) == (True, 0)
        assert await told(gateway) == [at_once.kid]
    async with registry(nats_server, nats_bus, access_dir=str(tmp_path)):
        assert await told(gateway) == [at_once.kid]


async def test_of_several_registries_the_one_with_the_keys_answers_for_accounts(
    nats_server: NatsInTest, nats_bus: MakeBus, tmp_path: Path
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    gateway = await nats_bus("gateway", "gateway-0")
    async with registry(nats_server, nats_bus, "registry-1"):
        with pytest.raises(NoResponders):
            await told(gateway)
        async with registry(nats_server, nats_bus, access_dir=str(tmp_path)):
            for _ in range(5):  # whoever is asked
                [kid] = await told(gateway)
                assert signer((await log_in(gateway, tmp_path)).access_token) == kid
                put = PutUser(username="ann", password="pw", roles=("user",))
                assert (await ask(operator, put, PutUserReply)).done
                rotated = await ask(operator, RotateSigningKey(at_once=True), RotateSigningKeyReply)
                assert rotated.done
