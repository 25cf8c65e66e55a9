"""Ends that nobody planned: nothing hangs, nothing is left running."""

import asyncio
import importlib.metadata
import subprocess
import sys

import psutil
import pytest

from components.host.errors import CannotStart
from components.worker.vllm.backend import EngineDied
from components.worker.vllm.engine import VllmEngine
from components.worker.vllm.handoff import Relay
from components.worker.vllm.loading import VllmModel, load_async_llm
from tests.engine.engines import SMALL, bytes_of, job
from tests.integration.cli.yards import alive
from tests.support.nats import until
from tests.support.sink import Sink

PROMPT = bytes_of("The yard is quiet at night.")
ENGINE_PROCESS = "VLLM::EngineCore"


def engine_processes(parent=None):
    children = alive(psutil.Process(parent).children(recursive=True))
    return [p for p in children if any(ENGINE_PROCESS in word for word in p.cmdline())]


def engine_of(source, faults):
    model = VllmModel("tiny", str(source), 1, SMALL, {})
    return VllmEngine(lambda: load_async_llm(model), Relay(), on_fault=faults.append)


async def test_the_death_of_vllm_is_a_fault_and_said_once(tiny_model):
    faults: list[BaseException] = []
    engine, sink = engine_of(tiny_model, faults), Sink()
    await engine.start(sink)
    try:
        engine.submit(job(prompt=PROMPT, max_tokens=900))
        await until(lambda: len(sink.ids()) > 5, "tokens", 30)
        [process] = engine_processes()
        process.kill()
        await until(lambda: bool(faults), "a fault")
        assert sink.finish() is None  # the gateway goes on elsewhere
    finally:
        await engine.stop()
    await engine.stop()
    assert [type(fault) for fault in faults] == [EngineDied]


async def test_a_model_that_is_not_there_is_said_in_words(tmp_path):
    engine = engine_of(tmp_path / "nothing", [])
    with pytest.raises(CannotStart, match="nothing"):
        await engine.start(Sink())
    await engine.stop()


async def test_an_end_while_it_loads_leaves_nothing(tiny_model):
    engine = engine_of(tiny_model, [])
    starting = asyncio.create_task(engine.start(Sink()))
    await until(engine_processes, "an engine process", 60)
    starting.cancel()
    await engine.stop()
    await until(lambda: not engine_processes(), "the end of it", 60)


WORKER = """
import asyncio, sys
from tests.engine.engines import running_engine
async def main():
    async with running_engine(sys.argv[1]):
        print("ready", flush=True)
        await asyncio.sleep(1000)
if __name__ == "__main__":
    asyncio.run(main())
"""


def test_vllm_ends_with_a_worker_that_is_killed(tiny_model, tmp_path):
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="switchyard"):
        pytest.skip("this installation does not name our plugin to vLLM")
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    worker = subprocess.Popen(
        [sys.executable, script, tiny_model],
        env={**psutil.Process().environ(), "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    try:
        assert any(line.startswith("ready") for line in worker.stdout)
        processes = engine_processes(worker.pid)
        assert processes
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    _, left = psutil.wait_procs(processes, timeout=10)
    assert not alive(left)
