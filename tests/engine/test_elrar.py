"""A real vLLM engine outside Switchyard says its state to a bridge, by variables alone."""

import asyncio
import importlib.metadata
import socket
import time

import pytest

pytest.importorskip("vllm")

from components.bridge.datagram import read
from components.worker.elrar.core import HEARTBEAT_S
from tests.engine.engines import SMALL

STEPS = 400


@pytest.fixture
def heard(monkeypatch):
    """Where an engine that is started now says its state."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bridge:
        bridge.bind(("127.0.0.1", 0))
        bridge.setblocking(False)
        monkeypatch.setenv("VLLM_ELRAR_GATEWAY_HOST", "127.0.0.1")
        monkeypatch.setenv("VLLM_ELRAR_GATEWAY_PORT", str(bridge.getsockname()[1]))
        monkeypatch.setenv("VLLM_ELRAR_PUSH_INTERVAL", "20")
        monkeypatch.setenv("VLLM_ELRAR_ENGINE_ID", "http://here:8000")
        yield bridge


def states(bridge):
    said = []
    while True:
        try:
            said.append(read(bridge.recv(4096)))
        except BlockingIOError:
            return said


def test_vllm_finds_it_where_the_package_is_installed():
    [found] = importlib.metadata.entry_points(group="vllm.stat_logger_plugins", name="elrar")
    assert found.value == "components.worker.elrar.plugin:ElrarStatLogger"


async def test_a_busy_engine_is_busy_in_every_state_and_idle_when_it_is_done(heard, tiny_model):
    from vllm import SamplingParams  # type: ignore[import-not-found]  # noqa: PLC0415
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]  # noqa: PLC0415

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(tiny_model), **SMALL))
    try:
        await asyncio.sleep(0.2)
        first = states(heard)[0]
        assert first.engine_id == "http://here:8000"
        assert first.kv_cache_free_blocks == first.kv_cache_total_blocks > 0
        sampling = SamplingParams(
            max_tokens=STEPS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )

        async def one(name):
            prompt = {"prompt_token_ids": list(range(10, 110))}
            async for _ in engine.generate(prompt, sampling, name):
                pass

        began_s = time.monotonic()
        await asyncio.gather(*(one(f"r{n}") for n in range(4)))
        busy = states(heard)
        assert len(busy) > 5
        # Those before the first step and after the last are not of the busy time.
        inside = busy[1:-1]
        assert all(s.kv_cache_free_blocks < s.kv_cache_total_blocks for s in inside)
        assert inside[-1].engine_capacity > 0
        assert inside[-1].latency_pred_ms < (time.monotonic() - began_s) * 1e3
        await asyncio.sleep(HEARTBEAT_S + 0.3)
        last = states(heard)[-1]
        assert last.kv_cache_free_blocks == last.kv_cache_total_blocks
        assert last.pending_tokens_total == 0
    finally:
        engine.shutdown()
