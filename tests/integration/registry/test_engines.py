"""Engines as records over a real server: what should be there is known after any restart."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from bus import subjects
from bus.nats_bus import NatsBus
from bus.records import Records
from bus.subjects import ANY
from components.registry import engine_service
from schemas.engines import (
    EngineChanged,
    EngineRecord,
    ForgetEngine,
    ForgetEngineReply,
    KnownEngine,
    ListEngines,
    ListEnginesReply,
    ShowEngine,
    ShowEngineReply,
)
from schemas.fleet import ShowFleet, ShowFleetReply
from tests.integration.registry.serving import ABOUT, MakeBus, ask, engine, registry
from tests.support.nats import NatsInTest, until

QUICK: dict[str, Any] = {"silent_after_s": 0.5, "engine_return_s": 1.0, "tick_ms": 50}
WRITE_S = 0.1


@pytest.fixture(autouse=True)
def _written_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_service, "WRITE_S", WRITE_S)


async def listed(operator: NatsBus) -> dict[str, KnownEngine]:
    reply = await ask(operator, ListEngines(), ListEnginesReply)
    return {known.record.engine: known for known in reply.engines}


async def shown(
    operator: NatsBus, condition: Callable[[dict[str, KnownEngine]], bool]
) -> dict[str, KnownEngine]:
    """All engines, once ``condition`` holds for them."""
    async with asyncio.timeout(15):
        while True:
            if condition(found := await listed(operator)):
                return found
            await asyncio.sleep(0.05)


async def kept(server: NatsInTest) -> dict[str, EngineRecord]:
    """What stands in the bucket."""
    key = server.key_file("registry", "registry-0")
    async with Records(server.url, key, source="registry-0") as records:
        found = await records.all("engines")
    return {
        r.name: EngineRecord.model_validate_json(r.value).model_copy(
            update={"revision": r.revision}
        )
        for r in found
    }


async def becomes(server: NatsInTest, **states: str | None) -> dict[str, EngineRecord]:
    """What stands in the bucket, once it says so of these engines (underscores are dashes)."""
    wanted = {name.replace("_", "-"): state for name, state in states.items()}
    async with asyncio.timeout(15):
        while True:
            found = await kept(server)
            have = {name: found[name].state if name in found else None for name in wanted}
            if have == wanted:
                return found
            await asyncio.sleep(0.1)


async def test_after_a_restart_of_everything_it_is_known_which_engines_there_should_be(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    async with (
        registry(nats_server, nats_bus, **QUICK),
        engine(nats_bus, "decode-0"),
        engine(nats_bus, "decode-1") as first,
        engine(nats_bus, "prefill-0") as leaving,
    ):
        found = await becomes(nats_server, decode_0="READY", decode_1="READY")
        assert found["decode-1"].about == ABOUT
        leaving.say(state="stopped")
        leaving.fields = {"state": "stopped"}
        await becomes(nats_server, prefill_0="STOPPED")
        epoch = found["decode-1"].process_epoch
        assert first.asked == 1
    # The registry, the engines and the server all end; two of the engines do not come back.
    await nats_server.kill()
    await nats_server.start()
    operator = await nats_bus("operator", "operator")
    async with registry(nats_server, nats_bus, **QUICK), engine(nats_bus, "decode-0"):
        found_ = await shown(operator, lambda e: e["decode-0"].heard)
        assert {name: e.missing for name, e in found_.items()} == {
            "decode-0": False,
            "decode-1": True,
            "prefill-0": False,
        }
        gone = found_["decode-1"]
        assert (gone.heard, gone.silent_ms) == (False, None)
        assert (gone.record.process_epoch, gone.record.about) == (epoch, ABOUT)
        records = await becomes(nats_server, decode_0="READY", decode_1="ERROR")
        assert records["prefill-0"].state == "STOPPED"
        asked = ListEngines(missing=True)
        missing = await ask(operator, asked, ListEnginesReply)
        assert [e.record.engine for e in missing.engines] == ["decode-1"]
        one = await ask(operator, ShowEngine(engine="decode-1"), ShowEngineReply)
        assert one.engine.record.state == "ERROR"
        nobody = await ask(operator, ShowEngine(engine="nobody"), ShowEngineReply)
        assert nobody.refusal == "not_found"


async def test_the_state_follows_the_life_and_each_change_is_told(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    told: list[EngineChanged] = []
    listener = await nats_bus("registry", "registry-9")
    await listener.subscribe(
        subjects.engine_changed(ANY), EngineChanged, lambda r: told.append(r.message)
    )
    async with registry(nats_server, nats_bus, **QUICK):
        async with engine(nats_bus, "decode-0") as one:
            one.fields = {"state": "starting"}
            await becomes(nats_server, decode_0="STARTING")
            one.fields = {"state": "ready"}
            await becomes(nats_server, decode_0="READY")
            one.take_work(accepting=False)
            await becomes(nats_server, decode_0="DRAINING")
            one.take_work(accepting=True)
            await becomes(nats_server, decode_0="READY")
        await becomes(nats_server, decode_0="ERROR")
        async with engine(nats_bus, "decode-0") as again:
            found = await becomes(nats_server, decode_0="READY")
            await until(lambda: again.asked == 1, "the new life is asked what it is")
            assert found["decode-0"].created_ms < found["decode-0"].updated_ms
            again.say(state="stopped")
            again.fields = {"state": "stopped"}
            await becomes(nats_server, decode_0="STOPPED")
    states = [event.state for event in told]
    expected = ["STARTING", "READY", "DRAINING", "READY", "ERROR", "READY", "STOPPED"]
    # A new life may be seen once before and once after it said what it is.
    assert [s for n, s in enumerate(states) if n == 0 or s != states[n - 1]] == expected
    assert len(states) <= len(expected) + 2
    revisions = [event.revision for event in told]
    assert revisions == sorted(set(revisions))


async def test_heartbeats_alone_write_nothing(nats_server: NatsInTest, nats_bus: MakeBus):
    await nats_server.provision()
    async with registry(nats_server, nats_bus, **QUICK), engine(nats_bus, "decode-0") as one:
        await becomes(nats_server, decode_0="READY")
        await until(lambda: one.asked == 1, "it was asked")
        await asyncio.sleep(3 * WRITE_S)
        before = await kept(nats_server)
        for watermark in range(20):
            one.say(watermark=watermark, running=watermark)
            await asyncio.sleep(WRITE_S / 2)
        assert await kept(nats_server) == before
        assert one.asked == 1


async def test_without_jetstream_the_fleet_is_heard_and_no_engine_looks_dead(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    """No streams at all at first, then a bucket that takes nothing any more."""
    operator = await nats_bus("operator", "operator")
    async with (
        registry(nats_server, nats_bus, loads=False, **QUICK) as service,
        engine(nats_bus, "decode-0") as one,
    ):
        found = await shown(operator, lambda e: "decode-0" in e)
        assert (found["decode-0"].heard, found["decode-0"].missing) == (True, False)
        reply = await ask(operator, ListEngines(), ListEnginesReply)
        assert not reply.complete
        nobody = await ask(operator, ShowEngine(engine="x"), ShowEngineReply)
        assert nobody.refusal == "store_away"
        await nats_server.provision()
        await becomes(nats_server, decode_0="READY")
        assert (await ask(operator, ListEngines(), ListEnginesReply)).complete

        await seal(nats_server)
        one.fields = {"state": "draining"}
        counters = service._host.counters
        await until(lambda: "engine_records_unwritten_total" in counters, "a write failed")
        async with engine(nats_bus, "decode-1"):
            found = await shown(operator, lambda e: len(e) == 2)
            for _ in range(20):  # for twice the time after which somebody silent is lost
                found = await listed(operator)
                assert {n: (e.heard, e.record.state) for n, e in found.items()} == {
                    "decode-0": (True, "DRAINING"),
                    "decode-1": (True, "READY"),
                }
                fleet = await ask(operator, ShowFleet(), ShowFleetReply)
                assert not any(p.lost for p in fleet.processes)
                await asyncio.sleep(0.05)
        # Whoever falls silent meanwhile is noticed too.
        await shown(operator, lambda e: e["decode-1"].missing)
        assert (await kept(nats_server))["decode-0"].state == "READY"


async def seal(server: NatsInTest) -> None:
    """The bucket takes no more writes."""
    client = await server.client("provisioner", "provisioner")
    info = json.loads((await client.request("$JS.API.STREAM.INFO.KV_engines", b"")).data)
    config = {**info["config"], "sealed": True}
    answer = await client.request("$JS.API.STREAM.UPDATE.KV_engines", json.dumps(config).encode())
    assert "error" not in json.loads(answer.data)


async def test_two_registries_keep_one_record_each_and_come_to_rest(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    told: list[EngineChanged] = []
    listener = await nats_bus("registry", "registry-9")
    await listener.subscribe(
        subjects.engine_changed(ANY), EngineChanged, lambda r: told.append(r.message)
    )
    names = [f"decode-{number}" for number in range(4)]
    async with (
        registry(nats_server, nats_bus, "registry-0", **QUICK) as one,
        registry(nats_server, nats_bus, "registry-1", **QUICK) as two,
    ):
        async with engine(nats_bus, names[0]), engine(nats_bus, names[1]):
            async with engine(nats_bus, names[2]), engine(nats_bus, names[3]) as last:
                await becomes(nats_server, **dict.fromkeys(map(under, names), "READY"))
                last.say(state="stopped")
                last.fields = {"state": "stopped"}
                await becomes(nats_server, decode_3="STOPPED")
            await becomes(nats_server, decode_2="ERROR")
            await asyncio.sleep(3 * WRITE_S)
            before, count = await kept(nats_server), len(told)
            await asyncio.sleep(10 * WRITE_S)
            assert await kept(nats_server) == before
            assert len(told) == count
            assert {n: r.state for n, r in before.items()} == {
                "decode-0": "READY",
                "decode-1": "READY",
                "decode-2": "ERROR",
                "decode-3": "STOPPED",
            }
            # Each changed once or, until it had said what it is, twice; whoever wrote it.
            assert count <= 2 * len(names) + 2
            # Either of them gives the same answer, and knows what the other has written.
            now_s = one._host.clock.now_s()
            for name in names:
                ours, theirs = (s._engines._table.show(name, now_s) for s in (one, two))
                assert ours.record == theirs.record == before[name]
                assert ours.missing == theirs.missing == (name == "decode-2")
            answer = await ask(operator, ForgetEngine(engine="decode-2"), ForgetEngineReply)
            assert answer.refusal is None
            for service in (one, two):
                recorded = service._engines._table.names
                await until(lambda recorded=recorded: "decode-2" not in recorded(), "both forget")  # type: ignore[misc]
        assert "decode-2" not in await kept(nats_server)


def under(name: str) -> str:
    return name.replace("-", "_")


async def test_a_record_is_forgotten_on_request_unless_its_engine_is_heard(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    forget = ForgetEngine(engine="decode-0")
    async with registry(nats_server, nats_bus, **QUICK):
        async with engine(nats_bus, "decode-0"):
            await becomes(nats_server, decode_0="READY")
            refused = await ask(operator, forget, ForgetEngineReply)
            assert (refused.refusal, "stop it first" in refused.detail) == ("conflict", True)
        await becomes(nats_server, decode_0="ERROR")
        assert (await ask(operator, forget, ForgetEngineReply)).refusal is None
        assert await kept(nats_server) == {}
        assert (await ask(operator, forget, ForgetEngineReply)).refusal == "not_found"
        async with engine(nats_bus, "decode-0"):
            await becomes(nats_server, decode_0="READY")


async def test_old_records_are_removed(nats_server: NatsInTest, nats_bus: MakeBus):
    await nats_server.provision()
    settings = {**QUICK, "engine_return_s": 0.1, "engine_record_days": 1e-6}
    async with registry(nats_server, nats_bus, **settings) as service:
        async with engine(nats_bus, "decode-0"):
            await becomes(nats_server, decode_0="READY")
            await service._engines._forget_old()
            assert "decode-0" in await kept(nats_server)
        await becomes(nats_server, decode_0="ERROR")
        await asyncio.sleep(0.2)
        await service._engines._forget_old()
        assert await kept(nats_server) == {}


async def test_in_a_full_table_who_left_makes_room_and_its_record_goes(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await nats_server.provision()
    async with registry(nats_server, nats_bus, **QUICK, engines_max=1) as service:
        async with engine(nats_bus, "decode-0") as leaving:
            await becomes(nats_server, decode_0="READY")
            leaving.say(state="stopped")
            leaving.fields = {"state": "stopped"}
            await becomes(nats_server, decode_0="STOPPED")
        async with engine(nats_bus, "decode-1"):
            await becomes(nats_server, decode_0=None, decode_1="READY")
        assert service._host.counters["engine_records_crowded_out_total"] == 1


async def test_what_cannot_be_read_is_left_as_it_is(nats_server: NatsInTest, nats_bus: MakeBus):
    """As a later version of ours may have written it."""
    await nats_server.provision()
    key = nats_server.key_file("registry", "registry-0")
    async with Records(nats_server.url, key, source="registry-0") as records:
        revision = await records.put("engines", "decode-0", b'{"form": 2}', revision=0)
        async with registry(nats_server, nats_bus, **QUICK), engine(nats_bus, "decode-0"):
            operator = await nats_bus("operator", "operator")
            await shown(operator, lambda e: e["decode-0"].heard if "decode-0" in e else False)
            await asyncio.sleep(5 * WRITE_S)
            record = await records.get("engines", "decode-0")
            assert record is not None
            assert (record.value, record.revision) == (b'{"form": 2}', revision)
