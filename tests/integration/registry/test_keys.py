"""API keys on a real server: made, asked about, revoked; by one registry or by two."""

import asyncio

from bus.nats_bus import NatsBus
from bus.records import Records
from components.registry.service import RegistryService
from schemas.keys import (
    ApiKey,
    CheckKey,
    CheckKeyReply,
    ListKeys,
    ListKeysReply,
    MakeKey,
    MakeKeyReply,
    RevokeKey,
    RevokeKeyReply,
)
from tests.integration.registry.serving import MakeBus, ask, registry
from tests.support.nats import NatsInTest, until

DIGEST, OTHER = b"d" * 32, b"e" * 32


def key_id(number: int) -> str:
    return f"{number:012x}"


async def make(operator: NatsBus, number: int = 1, **fields: object) -> MakeKeyReply:
    values = {"key_id": key_id(number), "digest": DIGEST, "tenant": "acme", **fields}
    reply: MakeKeyReply = await ask(operator, MakeKey.model_validate(values), MakeKeyReply)
    return reply


async def tenant(gateway: NatsBus, number: int = 1, digest: bytes = DIGEST) -> str:
    """Whom the key lets in as; the refusal when it does not."""
    question = CheckKey(key_id=key_id(number), digest=digest)
    reply: CheckKeyReply = await ask(gateway, question, CheckKeyReply)
    return reply.tenant or str(reply.refusal)


async def listed(operator: NatsBus) -> list[ApiKey]:
    reply: ListKeysReply = await ask(operator, ListKeys(), ListKeysReply)
    return list(reply.keys)


def known(service: RegistryService) -> list[ApiKey]:
    return list(service._keys._table.page(ListKeys())[0])


async def test_a_key_lets_in_until_it_is_revoked_also_after_a_restart_of_the_registry(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator, gateway = await nats_bus("operator", "operator"), await nats_bus("gateway", "g-0")
    async with registry(nats_server, nats_bus):
        made = await make(operator, name="batch jobs")
        assert (made.refusal, made.key and made.key.name) == (None, "batch jobs")
        assert (await make(operator)).refusal == "exists"
        assert await tenant(gateway) == "acme"
        assert await tenant(gateway, digest=OTHER) == "not_found"
        assert await tenant(gateway, 2) == "not_found"
    async with registry(nats_server, nats_bus):
        assert await listed(operator) == [made.key]
        assert await tenant(gateway) == "acme"
        for _ in range(2):
            revoked = await ask(operator, RevokeKey(key_id=key_id(1)), RevokeKeyReply)
            assert revoked.key.revoked_ms > 0
        assert await tenant(gateway) == "not_found"
    async with registry(nats_server, nats_bus):
        assert await tenant(gateway) == "not_found"
        assert await listed(operator) == [revoked.key]


async def test_what_stands_in_the_store_proves_nothing(nats_server: NatsInTest, nats_bus: MakeBus):
    """Only the hash is kept; whoever is let in has what hashes to it."""
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    async with registry(nats_server, nats_bus) as service:
        await make(operator)
        record = await service._records.get("keys", key_id(1))
        assert record is not None
        assert DIGEST.hex().encode() in record.value
        assert b"revision" not in record.value


async def test_before_records_are_read_and_while_the_store_is_away_it_is_said_so(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    operator, gateway = await nats_bus("operator", "operator"), await nats_bus("gateway", "g-0")
    async with registry(nats_server, nats_bus, loads=False) as service:
        assert await tenant(gateway) == "store_away"
        assert (await make(operator)).refusal == "store_away"
        assert (await ask(operator, ListKeys(), ListKeysReply)).refusal == "store_away"
        await nats_server.provision()
        await until(lambda: service._keys._records.loaded, "the keys are read")
        assert (await make(operator)).refusal is None
        assert await tenant(gateway) == "acme"


async def test_a_new_key_takes_the_place_of_one_that_is_over(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator, gateway = await nats_bus("operator", "operator"), await nats_bus("gateway", "g-0")
    async with registry(nats_server, nats_bus, keys_max=2):
        for number in (1, 2):
            assert (await make(operator, number)).refusal is None
        assert (await make(operator, 3)).refusal == "full"
        await ask(operator, RevokeKey(key_id=key_id(1)), RevokeKeyReply)
        assert (await make(operator, 3)).refusal is None
        assert [key.key_id for key in await listed(operator)] == [key_id(2), key_id(3)]
        assert await tenant(gateway, 3) == "acme"


async def test_what_one_of_two_registries_wrote_both_know(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator, gateway = await nats_bus("operator", "operator"), await nats_bus("gateway", "g-0")
    async with (
        registry(nats_server, nats_bus, "registry-0") as one,
        registry(nats_server, nats_bus, "registry-1") as two,
    ):
        for number in range(8):
            assert (await make(operator, number)).refusal is None
        await until(lambda: known(one) == known(two) and len(known(one)) == 8, "both know them")
        for number in range(8):
            reply = await ask(operator, RevokeKey(key_id=key_id(number)), RevokeKeyReply)
            assert reply.refusal is None
        await until(lambda: known(one) == known(two), "both know that they are revoked")
        assert {await tenant(gateway, number) for number in range(8)} == {"not_found"}


async def test_a_key_is_let_in_as_soon_as_it_is_made_and_no_longer_than_until_it_is_revoked(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    """Whichever of two registries is asked: a gateway remembers the answer."""
    await nats_server.provision()
    operator, gateway = await nats_bus("operator", "operator"), await nats_bus("gateway", "g-0")
    answers: list[tuple[str, str]] = []
    async with (
        registry(nats_server, nats_bus, "registry-0"),
        registry(nats_server, nats_bus, "registry-1"),
    ):
        for number in range(40):
            await make(operator, number)
            made = await tenant(gateway, number)
            await ask(operator, RevokeKey(key_id=key_id(number)), RevokeKeyReply)
            answers.append((made, await tenant(gateway, number)))
    assert answers == [("acme", "not_found")] * 40


async def test_a_key_that_was_revoked_elsewhere_is_not_let_in_by_who_missed_the_news(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator, gateway = await nats_bus("operator", "operator"), await nats_bus("gateway", "g-0")
    async with registry(nats_server, nats_bus) as service:
        made = await make(operator)
        assert made.key is not None
        # Somebody else writes, and says nothing.
        key_file = nats_server.key_file("registry", "registry-9")
        async with Records(nats_server.url, key_file, source="registry-9") as records:
            record = await records.get("keys", key_id(1))
            assert record is not None
            value = record.value.replace(b'"revoked_ms": 0', b'"revoked_ms": 5')
            await records.put("keys", key_id(1), value, revision=record.revision)
        assert await tenant(gateway) == "acme"
        service._keys.resume()  # as after a reconnect
        async with asyncio.timeout(10):
            while await tenant(gateway) != "not_found":  # noqa: ASYNC110  (a store's)
                await asyncio.sleep(0.02)
