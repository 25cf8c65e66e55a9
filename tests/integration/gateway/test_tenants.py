"""Who may ask over HTTP, and in whose name: keys that a registry knows, asked and remembered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from bus import subjects
from bus.bus import Received, Subscription
from bus.memory_bus import MemoryBus, MemoryHub
from components.domain import api_keys
from components.domain.api_keys import Shown
from components.gateway import tenants
from components.gateway.errors import ApiError
from components.gateway.settings import GatewaySettings
from components.gateway.tenants import Tenants
from components.host.clock import ManualClock
from schemas.keys import CheckKey, CheckKeyReply, KeyChanged
from tests.integration.gateway.fleet import Yard, running_gateway, until
from tests.support.host import HostInTest, connected_host

HELLO = [{"role": "user", "content": "Hello"}]


def text(number: int = 1) -> str:
    return api_keys.written(f"{number:012x}", f"{number:043d}")


def scope(said: str | None) -> dict[str, Any]:
    return {"headers": [(b"authorization", said.encode())] if said is not None else []}


class RegistryInTest:
    """Answers for keys; ``right`` are those that let in."""

    def __init__(self, hub: MemoryHub) -> None:
        self.bus = MemoryBus(hub, source="registry-0", epoch=1)
        self.right: dict[Shown, CheckKeyReply] = {}
        self.asked: list[str] = []
        self.says: CheckKeyReply | None = None
        self.holds: asyncio.Event | None = None
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        await self.bus.connect()
        await self.come()

    async def come(self) -> None:
        subject = subjects.check_key()
        self._subscription = await self.bus.subscribe(subject, CheckKey, self._check, queue="r")

    async def leave(self) -> None:
        assert self._subscription is not None
        await self._subscription.unsubscribe()

    def let_in(self, number: int, tenant: str = "acme", expires_ms: int = 0) -> str:
        shown = api_keys.read(text(number))
        assert shown is not None
        self.right[shown] = CheckKeyReply(tenant=tenant, expires_ms=expires_ms)
        return text(number)

    def changed(self, number: int) -> None:
        event = KeyChanged(key_id=f"{number:012x}", what="revoked")
        self.bus.publish(subjects.key_changed(event.key_id), event)

    def _check(self, question: Received[CheckKey]) -> None:
        shown = Shown(question.message.key_id, question.message.digest)
        self.asked.append(shown.key_id)
        reply = self.says or self.right.get(shown, CheckKeyReply(refusal="not_found"))
        if self.holds is None:
            self.bus.respond(question, reply)
        else:
            _ = asyncio.get_running_loop().create_task(self._answer_later(question, reply))

    async def _answer_later(self, question: Received[CheckKey], reply: CheckKeyReply) -> None:
        assert self.holds is not None
        await self.holds.wait()
        self.bus.respond(question, reply)


class Asked:
    """A gateway's tenants, and the registry that it asks."""

    def __init__(
        self, tenants: Tenants, registry: RegistryInTest, host: HostInTest, hub: MemoryHub
    ) -> None:
        self.tenants, self.registry, self.host, self.hub = tenants, registry, host, hub
        self.clock: ManualClock = host.clock  # type: ignore[assignment]

    async def of(self, said: str | None) -> str:
        """The tenant, or the code of the refusal."""
        try:
            return await self.tenants.of(scope(said))
        except ApiError as error:
            return error.code


@asynccontextmanager
async def asking(**settings: Any) -> AsyncIterator[Asked]:
    hub = MemoryHub()
    registry = RegistryInTest(hub)
    await registry.start()
    async with connected_host("gateway", hub=hub, clock=ManualClock()) as host:
        tenants = Tenants(host, GatewaySettings.model_validate(settings))
        await tenants.start()
        yield Asked(tenants, registry, host, hub)
    await registry.bus.close()


async def test_without_a_key_of_ours_one_is_the_default_tenant_unless_a_key_is_required():
    async with asking() as open_to_all:
        for said in (None, "", "Bearer EMPTY", "Basic abc", "sk-foreign", "Bearer"):
            assert await open_to_all.of(said) == "default"
    async with asking(api_keys="required") as closed:
        assert await closed.of(None) == "missing_api_key"
        assert await closed.of("Basic abc") == "missing_api_key"
        assert await closed.of("Bearer EMPTY") == "invalid_api_key"
        assert closed.host.counters["http_unauthorized_total"] == 3
        assert closed.registry.asked == []


async def test_a_right_key_is_asked_about_once_a_minute():
    async with asking(api_keys="required") as asked:
        key = asked.registry.let_in(1)
        for said in (f"Bearer {key}", f"bearer  {key} "):
            assert await asked.of(said) == "acme"
        assert len(asked.registry.asked) == 1
        asked.clock.advance(tenants.RIGHT_S)
        assert await asked.of(f"Bearer {key}") == "acme"
        assert len(asked.registry.asked) == 2


async def test_a_wrong_key_is_refused_also_where_none_is_required_and_not_asked_again_at_once():
    async with asking() as asked:
        asked.registry.let_in(1)
        other = api_keys.written(f"{1:012x}", "x" * 43)
        for said in (other, other, "sy-rubbish", text(2)):
            assert await asked.of(f"Bearer {said}") == "invalid_api_key"
        assert asked.registry.asked == [f"{1:012x}", f"{2:012x}"]
        asked.clock.advance(tenants.WRONG_S)
        assert await asked.of(f"Bearer {other}") == "invalid_api_key"
        assert len(asked.registry.asked) == 3


async def test_a_key_ends_by_itself_however_lately_it_was_asked_about():
    async with asking() as asked:
        ends_ms = asked.clock.wall_ms() + 10_000
        key = asked.registry.let_in(1, expires_ms=ends_ms)
        assert await asked.of(f"Bearer {key}") == "acme"
        asked.clock.advance(10.0)
        assert await asked.of(f"Bearer {key}") == "invalid_api_key"


async def test_what_the_registry_changes_is_forgotten_at_once():
    async with asking() as asked:
        key, other = asked.registry.let_in(1), asked.registry.let_in(2)
        for one in (key, other, text(3)):
            await asked.of(f"Bearer {one}")
        asked.registry.right.clear()
        asked.registry.let_in(3)
        for number in (1, 3):
            asked.registry.changed(number)
        await asked.registry.bus.flush()
        assert await asked.of(f"Bearer {key}") == "invalid_api_key"
        assert await asked.of(f"Bearer {text(3)}") == "acme"
        assert await asked.of(f"Bearer {other}") == "acme"  # remembered: nobody said otherwise


async def test_an_answer_that_is_older_than_a_change_is_not_kept():
    async with asking() as asked:
        asked.registry.holds = asyncio.Event()
        key = asked.registry.let_in(1)
        waiting = asyncio.create_task(asked.of(f"Bearer {key}"))
        await until(lambda: bool(asked.registry.asked), "it is asked about")
        asked.registry.changed(1)
        asked.registry.holds.set()
        assert await waiting == "acme"
        asked.registry.holds = None
        asked.registry.right.clear()
        assert await asked.of(f"Bearer {key}") == "invalid_api_key"


async def test_while_no_registry_answers_a_right_key_is_good_for_its_grace_and_a_new_one_unknown():
    async with asking(api_key_grace_s=100) as asked:
        key = asked.registry.let_in(1)
        assert await asked.of(f"Bearer {key}") == "acme"
        await asked.registry.leave()
        assert await asked.of(f"Bearer {text(2)}") == "api_keys_unavailable"
        for _ in range(3):
            asked.clock.advance(33.0)
            assert await asked.of(f"Bearer {key}") == "acme"
        asked.clock.advance(tenants.RETRY_S)
        assert await asked.of(f"Bearer {key}") == "api_keys_unavailable"
        assert asked.host.counters["api_keys_unknown_total"] == 2
        asked.clock.advance(tenants.UNTOLD_S)
        await asked.registry.come()
        assert await asked.of(f"Bearer {key}") == "acme"


async def test_a_registry_that_has_not_read_its_records_is_none():
    async with asking() as asked:
        key = asked.registry.let_in(1)
        asked.registry.says = CheckKeyReply(refusal="store_away")
        assert await asked.of(f"Bearer {key}") == "api_keys_unavailable"
        asked.registry.says = None
        asked.clock.advance(tenants.UNTOLD_S)
        assert await asked.of(f"Bearer {key}") == "acme"


async def test_right_keys_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tenants, "REMEMBERED_MAX", 2)
    async with asking() as asked:
        keys = [asked.registry.let_in(number) for number in range(3)]
        for key in (*keys, keys[2], keys[0]):
            assert await asked.of(f"Bearer {key}") == "acme"
        assert asked.host.counters["api_keys_asked_total"] == 4  # the first one once more


async def test_a_flood_of_wrong_keys_is_bounded_and_drives_no_right_key_out(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tenants, "REMEMBERED_MAX", 8)
    async with asking() as asked:
        key = asked.registry.let_in(1)
        assert await asked.of(f"Bearer {key}") == "acme"
        asked.registry.holds = asyncio.Event()
        flood = [asyncio.create_task(asked.of(f"Bearer {text(n)}")) for n in range(2, 102)]
        twins = [asyncio.create_task(asked.of(f"Bearer {text(2)}")) for _ in range(3)]
        await until(lambda: len(asked.registry.asked) > tenants.ASKS_MAX, "some are asked about")
        asked.registry.holds.set()
        said = await asyncio.gather(*flood)
        assert said.count("overloaded") == 100 - tenants.ASKS_MAX
        assert said.count("invalid_api_key") == tenants.ASKS_MAX
        assert set(await asyncio.gather(*twins)) == {"invalid_api_key"}
        assert len(asked.tenants._wrong) == 8
        assert await asked.of(f"Bearer {key}") == "acme"
        assert len(asked.registry.asked) == 1 + tenants.ASKS_MAX


async def test_a_right_key_whose_minute_is_over_is_let_in_amid_a_flood_for_its_grace():
    async with asking(api_key_grace_s=100) as asked:
        key = asked.registry.let_in(1)
        assert await asked.of(f"Bearer {key}") == "acme"
        asked.registry.holds = asyncio.Event()
        asked.clock.advance(tenants.RIGHT_S)
        flood = [asyncio.create_task(asked.of(f"Bearer {text(n)}")) for n in range(2, 102)]
        await until(lambda: len(asked.registry.asked) > tenants.ASKS_MAX, "some are asked about")
        assert await asked.of(f"Bearer {key}") == "acme"
        # Nobody has said again that it is right: that does not go on for ever.
        asked.clock.advance(100.1 - tenants.RIGHT_S)
        assert await asked.of(f"Bearer {key}") == "overloaded"
        asked.registry.holds.set()
        await asyncio.gather(*flood)
        assert await asked.of(f"Bearer {key}") == "acme"


async def test_after_an_absence_of_the_bus_every_key_is_asked_about_anew():
    async with asking() as asked:
        key = asked.registry.let_in(1)
        assert await asked.of(f"Bearer {key}") == "acme"
        assert await asked.of(f"Bearer {text(2)}") == "invalid_api_key"
        asked.registry.right.clear()
        asked.registry.let_in(2)
        asked.hub.partition("gateway-0")
        asked.hub.heal("gateway-0")
        await until(lambda: not asked.tenants._wrong, "it has heard that the bus is back")
        assert await asked.of(f"Bearer {key}") == "invalid_api_key"
        assert await asked.of(f"Bearer {text(2)}") == "acme"


async def test_a_short_grace_has_keys_asked_about_as_often():
    async with asking(api_key_grace_s=10) as asked:
        key = asked.registry.let_in(1)
        assert await asked.of(f"Bearer {key}") == "acme"
        asked.clock.advance(10.0)
        await asked.registry.leave()
        assert await asked.of(f"Bearer {key}") == "acme"
        asked.clock.advance(10.1)
        assert await asked.of(f"Bearer {key}") == "api_keys_unavailable"


async def test_while_nobody_answers_unknown_keys_cost_one_question_a_second():
    async with asking() as asked:
        asked.registry.says = CheckKeyReply(refusal="store_away")
        for number in range(20):
            assert await asked.of(f"Bearer {text(number)}") == "api_keys_unavailable"
        assert len(asked.registry.asked) == 1
        asked.clock.advance(tenants.UNTOLD_S)
        assert await asked.of(f"Bearer {text(1)}") == "api_keys_unavailable"
        assert len(asked.registry.asked) == 2


# Over HTTP.


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[tuple[Yard, RegistryInTest]]:
    async with running_gateway(**settings) as yard:
        registry = RegistryInTest(yard.hub)
        await registry.start()
        try:
            yield yard, registry
        finally:
            await registry.bus.close()


async def test_the_official_client_is_let_in_with_its_key_and_refused_without():
    async with served(api_keys="required") as (yard, registry):
        key = registry.let_in(1, tenant="acme")
        client = yard.client()
        call = {"model": "sim/words", "messages": HELLO, "max_tokens": 4}
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.chat.completions.create(**call)
        assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        client = client.with_options(api_key=key)
        answer = await client.chat.completions.create(**call)
        assert answer.usage.completion_tokens == 4
        assert [m.id async for m in await client.models.list()] == ["sim/words"]
        assert [s.card.tenant for s in yard.fleet.scheduled] == ["acme"]


async def test_what_says_how_the_server_is_wants_no_key_and_engine_states_do():
    async with served(api_keys="required") as (yard, registry):
        key = registry.let_in(1)
        async with yard.http() as http:
            for path in ("/health", "/ready", "/live", "/version"):
                assert (await http.get(path)).status_code == 200
            refused = await http.get("/state/engines")
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                401,
                "missing_api_key",
            )
            known = await http.get("/state/engines", headers={"authorization": f"Bearer {key}"})
            assert known.status_code != 401


async def test_who_may_not_ask_is_told_before_the_body_has_arrived():
    async with served(api_keys="required") as (yard, _):
        reader, writer = await asyncio.open_connection(*yard.address)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{"
        )
        async with asyncio.timeout(5):
            head = await reader.readline()
        writer.close()
        assert b" 401 " in head
