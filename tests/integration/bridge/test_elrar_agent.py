"""ELRAR's engine agent and the bridge: what an engine does arrives, and no idleness that is not."""

import time

from components.worker.elrar.core import EngineState, Step
from components.worker.elrar.sender import Sender
from components.worker.elrar.settings import read
from tests.integration.bridge.test_udp import bridge


async def test_an_engine_outside_is_an_engine_of_the_fleet():
    async with bridge() as yard:
        environment = {
            "VLLM_ELRAR_GATEWAY_HOST": "127.0.0.1",
            "VLLM_ELRAR_GATEWAY_PORT": str(yard.port),
            "VLLM_ELRAR_PUSH_INTERVAL": "10",
            "VLLM_ELRAR_ENGINE_ID": "http://10.0.0.7:8000",
        }
        settings = read(environment, "127.0.0.1", 1)
        assert settings is not None
        state = EngineState(settings.engine_id, settings.interval_s, 500, 8)
        sender = Sender(settings, state)
        try:
            await yard.until(lambda: len(yard.events) >= 1)
            sender.on_step(Step(time.monotonic(), 3, 4, 700, 0.5, (20,)))
            await yard.until(lambda: yard.events[-1].pending_tokens_total == 80)
        finally:
            sender.close()
        assert {event.engine_id for event in yard.events} == {"http://10.0.0.7:8000"}
        assert yard.events[-1].kv_cache_free_blocks == 250
