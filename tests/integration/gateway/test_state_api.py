"""Engines outside over HTTP: what bridges know, merged, with errors that say what is missing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from components.bridge import datagram
from components.bridge.service import BridgeService
from components.bridge.settings import BridgeSettings
from tests.integration.gateway.fleet import Yard, running_gateway, until
from tests.support.host import connected_host

NOW_MS = 1_795_000_000_000


@asynccontextmanager
async def bridge(yard: Yard, name: str = "bridge-0") -> AsyncIterator[BridgeService]:
    """A bridge on the gateway's bus, heard of by it."""
    async with connected_host("bridge", name, hub=yard.hub) as host:
        chosen = BridgeSettings.model_validate({"bind_address": "127.0.0.1", "udp_port": 0})
        service = BridgeService(host, chosen)
        await service.start()
        yard.fleet.beat("bridge", name)
        known = yard.gateway._desk.others
        await until(lambda: known.get(name) is not None, "the gateway has heard of the bridge")
        try:
            yield service
        finally:
            await service.stop()


def take(service: BridgeService, engine: str, at_ms: int = NOW_MS, **fields: Any) -> None:
    data = datagram.test_datagram(engine, at_ms, **fields)
    service._take([(data, "10.0.0.7", 5000, False)])


async def get(yard: Yard, path: str, **params: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=yard.url) as client:
        return await client.get(path, params=params)


async def test_engines_are_listed_with_what_is_known_of_their_state():
    async with running_gateway() as yard, bridge(yard) as service:
        take(service, "http://a:8000", pending_tokens_total=384)
        take(service, "http://b:8000")
        answer = (await get(yard, "/state/engines")).json()
        assert [e["engine_id"] for e in answer["engines"]] == ["http://a:8000", "http://b:8000"]
        first = answer["engines"][0]
        told = [first[name] for name in ("pending_tokens_total", "trust", "stale")]
        assert told == [384, "low", False]
        assert answer["next"] is None
        page = (await get(yard, "/state/engines", limit=1)).json()
        assert (len(page["engines"]), page["next"]) == (1, "http://a:8000")
        rest = (await get(yard, "/state/engines", after=page["next"])).json()
        assert [e["engine_id"] for e in rest["engines"]] == ["http://b:8000"]


async def test_one_engine_is_shown_with_its_history():
    async with running_gateway() as yard, bridge(yard) as service:
        for number in range(5):
            take(service, "http://a:8000", NOW_MS + number)
        shown = (await get(yard, "/state/engines/http://a:8000", history=3)).json()
        assert [s["timestamp_ms"] - NOW_MS for s in shown["history"]] == [2, 3, 4]
        assert shown["kept"] == 5
        missing = await get(yard, "/state/engines/http://x:8000")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "engine_not_found")


async def test_statistics_have_the_seed_s_names():
    async with running_gateway() as yard, bridge(yard) as service:
        take(service, "http://a:8000")
        service._take([(b"rubbish", "10.0.0.7", 5000, True)])
        stats = (await get(yard, "/state/stats")).json()
        assert {
            name: stats[name]
            for name in (
                "total_received",
                "valid_states",
                "invalid_states",
                "unicast_received",
                "broadcast_received",
                "active_engines",
                "total_engines",
                "valid_rate",
            )
        } == {
            "total_received": 2,
            "valid_states": 1,
            "invalid_states": 1,
            "unicast_received": 1,
            "broadcast_received": 1,
            "active_engines": 1,
            "total_engines": 1,
            "valid_rate": "50.00%",
        }
        assert stats["last_received"] > 1e9
        port = int(str(service.heartbeat()["address"]).rpartition(":")[2])
        assert (stats["bind_address"], stats["udp_port"]) == ("127.0.0.1", port)
        assert (stats["network_mode"], stats["stale_threshold_ms"]) == ("unicast", 2000)
        assert len(stats["listeners"]) == 1


async def test_of_an_engine_that_two_bridges_hear_the_younger_state_stands():
    async with running_gateway() as yard, bridge(yard) as one, bridge(yard, "bridge-1") as two:
        take(one, "http://a:8000", pending_tokens_total=1)
        take(two, "http://a:8000", pending_tokens_total=2)
        take(two, "http://b:8000")
        engines = (await get(yard, "/state/engines")).json()["engines"]
        assert [e["engine_id"] for e in engines] == ["http://a:8000", "http://b:8000"]
        stats = (await get(yard, "/state/stats")).json()
        assert (stats["bridges"], stats["total_received"]) == (2, 3)


async def test_without_a_bridge_that_is_said():
    async with running_gateway() as yard:
        for path in ("/state/engines", "/state/stats", "/state/engines/a"):
            answer = await get(yard, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_bridge")


async def test_a_bridge_that_does_not_answer_is_a_timeout():
    async with running_gateway() as yard, bridge(yard) as service:
        await service.stop()
        answer = await get(yard, "/state/stats")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "bridge_timeout")


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}])
async def test_a_parameter_out_of_range_is_told(params: dict[str, Any]):
    async with running_gateway() as yard:
        answer = await get(yard, "/state/engines", **params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
