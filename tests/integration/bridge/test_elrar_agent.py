"""ELRAR's engine agent and the bridge: what an engine does arrives, and no idleness that is not."""

import asyncio
import time
from contextlib import contextmanager

from bus import subjects
from components.bridge.service import BridgeService
from components.bridge.settings import BridgeSettings
from components.worker.elrar import core
from components.worker.elrar.core import EngineState, Step
from components.worker.elrar.sender import Sender
from components.worker.elrar.settings import read
from schemas.engine import EngineStateReceived, EngineStatesReceived
from tests.integration.bridge.test_udp import bridge
from tests.support.host import testing_host
from tests.support.nats import until

ENGINE = "http://10.0.0.7:8000"
BLOCKS = 500


@contextmanager
def agent(port, engine_id=ENGINE):
    """As the plugin makes it from an engine's environment."""
    environment = {
        "VLLM_ELRAR_GATEWAY_HOST": "127.0.0.1",
        "VLLM_ELRAR_GATEWAY_PORT": str(port),
        "VLLM_ELRAR_PUSH_INTERVAL": "10",
        "VLLM_ELRAR_ENGINE_ID": engine_id,
    }
    settings = read(environment, "127.0.0.1", 1)
    assert settings is not None
    sender = Sender(settings, EngineState(settings.engine_id, settings.interval_s, BLOCKS, 8))
    try:
        yield sender
    finally:
        sender.close()


async def test_an_engine_outside_is_an_engine_of_the_fleet():
    async with bridge() as yard:
        with agent(yard.port) as sender:
            await yard.until(lambda: len(yard.events) >= 1)
            sender.on_step(Step(time.monotonic(), 3, 4, 700, 0.5, (20,)))
            await yard.until(lambda: yard.events[-1].pending_tokens_total == 80)
        assert {event.engine_id for event in yard.events} == {ENGINE}
        assert yard.events[-1].kv_cache_free_blocks == 250


async def test_over_nats_a_busy_engine_is_fresh_and_busy_through_a_long_step(nats_bus, monkeypatch):
    """Heartbeats of the real thread, faster than in life so that many of them fit into the step."""
    monkeypatch.setattr(core, "HEARTBEAT_S", 0.02)
    seen: list[EngineStateReceived] = []
    registry = await nats_bus("registry", "registry-0")
    await registry.subscribe(
        subjects.engine_states_received(subjects.ANY),
        EngineStatesReceived,
        lambda received: seen.extend(received.message.states),
    )
    host = testing_host("bridge", bus=await nats_bus("bridge", "bridge-0"))
    service = BridgeService(host, BridgeSettings(bind_address="127.0.0.1", udp_port=0))
    await service.start()
    try:
        with agent(int(str(service.heartbeat()["address"]).rpartition(":")[2])) as sender:
            await until(lambda: bool(seen), "the first state")
            sender.on_step(Step(time.monotonic(), 8, 2, 700, 0.9, (100,)))
            await until(lambda: seen[-1].pending_tokens_total == 200, "it is busy")
            busy_from = len(seen)
            await asyncio.sleep(0.4)
            await until(lambda: len(seen) >= busy_from + 5, "heartbeats of the long step")
            busy = seen[busy_from:]
            sender.on_step(Step(time.monotonic(), 0, 0, 0, 0.0))
            await until(lambda: seen[-1].kv_cache_free_blocks == BLOCKS, "it is done")
    finally:
        await service.drain(1.0)
        await service.stop()
        await host.tasks.stop()
    assert not host.faults
    assert {(s.pending_tokens_total, s.kv_cache_free_blocks) for s in busy} == {(200, 50)}
    assert [s.timestamp_ms for s in busy] == sorted({s.timestamp_ms for s in busy})
    assert host.counters["valid_total"] == len(seen)
    assert "invalid_total" not in host.counters
