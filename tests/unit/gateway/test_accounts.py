"""Tokens are checked by the keys that the registry tells, and by no others for longer than said."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest

from bus import subjects
from bus.errors import NoResponders
from bus.memory_bus import MemoryBus, MemoryHub
from components.gateway.accounts import KEPT_S, UNKNOWN_BURST, Accounts, BadToken
from components.host.clock import ManualClock
from components.registry.settings import RegistrySettings
from components.registry.signing_service import SigningService
from schemas.access import KEYS_AGAIN_S, LEEWAY_S, RotateSigningKey, RotateSigningKeyReply
from tests.support.host import HostInTest, connected_host

TOKEN_S = 3600


@dataclass
class Yard:
    clock: ManualClock
    registry: HostInTest
    signing: SigningService
    settings: RegistrySettings
    gateway: HostInTest
    accounts: Accounts
    operator: MemoryBus

    def token(self) -> str:
        return self.signing.token("ann", ("admin",))

    async def name(self, token: str) -> str:
        return (await self.accounts.caller(f"Bearer {token}", "")).name

    async def rotate(self, *, at_once: bool = False) -> RotateSigningKeyReply:
        subject, question = subjects.rotate_signing_key(), RotateSigningKey(at_once=at_once)
        reply = await self.operator.ask(subject, question, RotateSigningKeyReply, timeout_s=2)
        assert (reply.done, reply.detail) == (True, "")
        return reply

    async def restart(self) -> None:
        """The registry, with the file that it has."""
        await self.signing.stop()
        self.signing = SigningService(self.registry, self.settings)
        await self.signing.start()

    def asked(self) -> int:
        return self.gateway.bus.sent["session.show_keys.v1"]


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    hub, clock = MemoryHub(), ManualClock()
    settings = RegistrySettings(access_dir=str(tmp_path), access_token_s=TOKEN_S)
    operator = MemoryBus(hub, source="operator", epoch=1)
    await operator.connect()
    async with (
        connected_host("registry", hub=hub, clock=clock) as registry,
        connected_host("gateway", hub=hub, clock=clock) as gateway,
    ):
        signing = SigningService(registry, settings)
        await signing.start()
        yield Yard(clock, registry, signing, settings, gateway, Accounts(gateway), operator)
    await operator.close()


async def test_a_token_of_the_previous_key_counts_until_every_one_of_it_has_ended(yard: Yard):
    before = yard.token()
    reply = await yard.rotate()
    assert reply.grace_s == TOKEN_S + LEEWAY_S
    after = yard.token()
    for passes_s in (0, TOKEN_S - 1, LEEWAY_S):
        yard.clock.advance(passes_s)
        assert [await yard.name(before), await yard.name(after)] == ["ann", "ann"]
        await yard.restart()
    yard.clock.advance(1)
    with pytest.raises(BadToken, match="Token expired"):
        await yard.name(before)
    # Nor is the key told to anybody now.
    yard.clock.advance(KEYS_AGAIN_S)
    with pytest.raises(BadToken, match="Invalid token"):
        await yard.name(before)
    assert await yard.name(yard.token()) == "ann"


async def test_a_token_of_a_dropped_key_is_refused_within_the_bound(yard: Yard):
    before = yard.token()
    assert await yard.name(before) == "ann"
    yard.clock.advance(1.0)
    assert (await yard.rotate(at_once=True)).grace_s == 0
    yard.clock.advance(KEYS_AGAIN_S - 1.1)
    # Just checked for another minute, which must not count.
    assert await yard.name(before) == "ann"
    assert yard.asked() == 1
    yard.clock.advance(0.1)
    with pytest.raises(BadToken, match="Invalid token"):
        await yard.name(before)
    assert await yard.name(yard.token()) == "ann"


async def test_a_token_of_a_new_key_is_good_at_once_and_ends_the_dropped_one(yard: Yard):
    before = yard.token()
    assert await yard.name(before) == "ann"
    await yard.rotate(at_once=True)
    assert await yard.name(yard.token()) == "ann"
    with pytest.raises(BadToken, match="Invalid token"):
        await yard.name(before)


async def test_while_no_registry_answers_keys_are_believed_for_a_bounded_time(yard: Yard):
    token = yard.token()
    assert await yard.name(token) == "ann"
    await yard.signing.stop()
    yard.clock.advance(KEPT_S - 0.1)
    for _ in range(3):
        assert await yard.name(token) == "ann"
    # One of the three asked; it is asked again a while later, not each time.
    assert yard.asked() == 2
    assert yard.gateway.counters["signing_keys_not_told_total"] == 1
    yard.clock.advance(0.1)
    for _ in range(2):
        with pytest.raises(NoResponders):
            await yard.name(token)
    await yard.signing.start()
    assert await yard.name(token) == "ann"


async def test_tokens_of_unknown_keys_ask_no_more_often_than_said(yard: Yard, tmp_path: Path):
    foreign = SigningService(
        yard.registry, RegistrySettings(access_dir=str(tmp_path / "foreign"))
    ).token("eve", ("admin",))
    for _ in range(UNKNOWN_BURST + 5):
        with pytest.raises(BadToken, match="Invalid token"):
            await yard.name(foreign)
    assert yard.asked() == UNKNOWN_BURST + 1
    # However long nobody came, it is as many again, and the one that is due.
    yard.clock.advance(3600.0)
    for _ in range(UNKNOWN_BURST + 5):
        with pytest.raises(BadToken, match="Invalid token"):
            await yard.name(foreign)
    assert yard.asked() == 2 * (UNKNOWN_BURST + 1)
    assert await yard.name(yard.token()) == "ann"


async def test_many_tokens_that_come_together_ask_once_and_all_count(yard: Yard):
    tokens = [yard.token() for _ in range(20)]
    assert await asyncio.gather(*map(yard.name, tokens)) == ["ann"] * 20
    assert yard.asked() == 1


async def test_a_caller_that_leaves_takes_no_answer_from_the_others(yard: Yard):
    leaves, stays = (asyncio.ensure_future(yard.name(yard.token())) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    assert await stays == "ann"
    assert leaves.cancelled()


async def test_a_token_counts_from_its_beginning_to_its_end_and_a_leeway_beyond_both(yard: Yard):
    token = yard.token()
    yard.clock.advance(TOKEN_S + LEEWAY_S - 0.1)
    assert await yard.name(token) == "ann"
    # Checked a moment ago, beyond its end: that is not kept.
    yard.clock.advance(0.1)
    with pytest.raises(BadToken, match="Token expired"):
        await yard.name(token)
    now_s = yard.clock.wall_ms() // 1000
    claims = jwt.decode(token, options={"verify_signature": False})
    claims |= {"iat": now_s, "nbf": now_s, "exp": now_s + TOKEN_S}

    def changed(**said: object) -> str:
        return yard.signing._keys.signed({**claims, **said})

    early, too_early = now_s + LEEWAY_S, now_s + LEEWAY_S + 1
    assert await yard.name(changed(nbf=early, iat=early)) == "ann"
    wrong: list[dict[str, object]] = [{"nbf": too_early}, {"iat": too_early}]
    wrong += [{"exp": "later"}, {"exp": float("inf")}]
    wrong += [{"aud": "x"}, {"iss": "x"}, {"sub": None}, {"jti": None}]
    for said in wrong:
        with pytest.raises(BadToken, match="Invalid token"):
            await yard.name(changed(**said))


async def test_two_rotations_at_once_are_one_and_a_refusal(yard: Yard):
    subject, question = subjects.rotate_signing_key(), RotateSigningKey()
    replies = await asyncio.gather(
        *(
            yard.operator.ask(subject, question, RotateSigningKeyReply, timeout_s=2)
            for _ in range(2)
        )
    )
    assert sorted(reply.done for reply in replies) == [False, True]
    assert "try again" in next(reply.detail for reply in replies if not reply.done)
    assert (await yard.rotate()).kid == yard.signing._keys.kid


async def test_a_key_that_cannot_be_written_does_not_sign(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    token = yard.token()
    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        reply = await yard.operator.ask(
            subjects.rotate_signing_key(), RotateSigningKey(), RotateSigningKeyReply, timeout_s=2
        )
    assert (reply.done, reply.detail) == (
        False,
        "the keys could not be written: No space left on device",
    )
    assert await yard.name(yard.token()) == "ann"
    await yard.restart()
    assert await yard.name(token) == "ann"
