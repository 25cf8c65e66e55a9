"""A real vLLM engine outside Switchyard says its state to a bridge, by variables alone."""

import asyncio
import importlib.metadata
import time

import pytest

pytest.importorskip("vllm")

from components.worker.elrar.core import HEARTBEAT_S
from tests.engine.engines import SMALL
from tests.integration.bridge.test_udp import bridge

STEPS = 400
ENGINE = "http://here:8000"


@pytest.fixture
async def yard(monkeypatch):
    """A bridge to which an engine that is started now says its state."""
    async with bridge() as made:
        monkeypatch.setenv("VLLM_ELRAR_GATEWAY_HOST", "127.0.0.1")
        monkeypatch.setenv("VLLM_ELRAR_GATEWAY_PORT", str(made.port))
        monkeypatch.setenv("VLLM_ELRAR_PUSH_INTERVAL", "20")
        monkeypatch.setenv("VLLM_ELRAR_ENGINE_ID", ENGINE)
        yield made


def is_idle(state):
    free, total = state.kv_cache_free_blocks, state.kv_cache_total_blocks
    return free == total > 0 and not state.pending_tokens_total


def test_vllm_finds_it_where_the_package_is_installed():
    [found] = importlib.metadata.entry_points(group="vllm.stat_logger_plugins", name="elrar")
    assert found.value == "components.worker.elrar.plugin:ElrarStatLogger"


async def test_a_busy_engine_is_busy_in_every_state_and_idle_when_it_is_done(yard, tiny_model):
    from vllm import SamplingParams  # type: ignore[import-not-found]  # noqa: PLC0415
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]  # noqa: PLC0415

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(tiny_model), **SMALL))

    async def one(name, tokens=STEPS):
        sampling = SamplingParams(
            max_tokens=tokens, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        async for _ in engine.generate({"prompt_token_ids": list(range(10, 110))}, sampling, name):
            pass

    try:
        await yard.until(lambda: bool(yard.events))
        assert is_idle(yard.events[0])

        began_s, before = time.monotonic(), len(yard.events)
        await asyncio.gather(*(one(f"r{n}") for n in range(4)))
        busy = yard.events[before:]
        assert len(busy) > 5
        # Those before the first step and after the last are not of the busy time.
        inside = busy[1:-1]
        assert not any(is_idle(state) for state in inside)
        assert all(s.kv_cache_free_blocks < s.kv_cache_total_blocks for s in inside)
        assert inside[-1].engine_capacity > 0
        assert inside[-1].latency_pred_ms < (time.monotonic() - began_s) * 1e3
        await yard.until(lambda: is_idle(yard.events[-1]))

        # Halted in the middle of its work it makes no steps, and is as busy as it was.
        work = asyncio.create_task(one("halted"))
        await yard.until(lambda: not is_idle(yard.events[-1]))
        await engine.pause_generation(mode="keep")
        await asyncio.sleep(0.3)
        before = len(yard.events)
        await asyncio.sleep(2 * HEARTBEAT_S + 0.3)
        halted = yard.events[before:]
        assert 2 <= len(halted) <= 3
        assert not any(is_idle(state) for state in halted)
        await engine.resume_generation()
        await work
        await yard.until(lambda: is_idle(yard.events[-1]))

        # Work that nobody wants any more is no work.
        work = asyncio.create_task(one("unwanted", 900))
        await yard.until(lambda: not is_idle(yard.events[-1]))
        work.cancel()
        await yard.until(lambda: is_idle(yard.events[-1]))
        before = len(yard.events)
        await asyncio.sleep(HEARTBEAT_S + 0.3)
        assert len(yard.events) > before
        assert all(is_idle(state) for state in yard.events[before:])
        assert {state.engine_id for state in yard.events} == {ENGINE}
    finally:
        engine.shutdown()
