"""A real `vllm serve` behind the HTTP agent gives what the engine in process gives."""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import httpx
import pytest

pytest.importorskip("vllm")

from bus.server import free_port
from components.host.clock import SystemClock
from components.worker.openai_http.engine import OpenAIEngine
from components.worker.openai_http.settings import OpenAISettings, ServedModel
from tests.engine.engines import SMALL, finished, job, running_engine
from tests.support.nats import until
from tests.support.sink import Sink

TOKENS = 24
START_S = 180.0
LENGTHS = (5, 31, 32, 33, 100, 257, 900)


def prompts():
    source = random.Random(11)
    return [[source.randrange(8, 264) for _ in range(length)] for length in LENGTHS]


ASKED = {
    **{f"greedy-{len(p)}": {"prompt": p} for p in prompts()},
    "stop": {"prompt": prompts()[4], "max_tokens": 200, "stop": ("a",)},
    "logprobs": {"prompt": prompts()[1], "logprobs": 2},
    "prompt-logprobs": {"prompt": prompts()[0], "prompt_logprobs": 1},
    "bias": {"prompt": prompts()[2], "logit_bias": ((65, 100.0),), "max_tokens": 5},
    "seeded": {"prompt": prompts()[3], "temperature": 1.0, "seed": 5, "n": 2},
}


@pytest.fixture(scope="module")
def served(tiny_model, tmp_path_factory):
    """URL of a server that runs for all tests here."""
    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "serve.log"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()
             if not isinstance(value, bool)]  # fmt: skip
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
    }
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={tiny_model}",
        "--served-model-name=tiny", "--enforce-eager", "--host=127.0.0.1", f"--port={port}", *words,
    ]  # fmt: skip
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        ) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process, log)
        yield url
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(url, process, log):
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                return
        time.sleep(0.2)
    pytest.fail(f"not ready:\n{log.read_text()[-3000:]}")


@asynccontextmanager
async def agent(url, directory, **settings):
    faults: list[BaseException] = []
    engine = OpenAIEngine(
        ServedModel("tiny", 1, url, 1024, 16, 2048, None),
        OpenAISettings(tokenizer_dir=str(directory), start_wait_s=10, **settings),
        clock=SystemClock(),
        on_fault=faults.append,
    )
    sink = Sink()
    try:
        await engine.start(sink)
        yield engine, sink
    finally:
        await engine.stop()
    assert faults == []


async def answers(engine, sink):
    """(ids, text, finish, logprobs) of every choice of everything asked."""
    for name, given in ASKED.items():
        engine.submit(job(name, **{"max_tokens": TOKENS, **given}))
    said = {}
    for name, given in ASKED.items():
        choices = given.get("n", 1)
        await finished(sink, name, choices)
        for choice in range(choices):
            extras = [e[6] or {} for e in sink.of(name, choice)]
            rows = [row for extra in extras for row in extra.get("logprobs") or ()]
            prompt = [extra["prompt_logprobs"] for extra in extras if "prompt_logprobs" in extra]
            said[name, choice] = {
                "ids": sink.ids(name, choice),
                "text": sink.text(name, choice),
                "finish": sink.finish(name, choice)[:2],
                "logprobs": rounded(rows),
                "prompt_logprobs": rounded(prompt[0]) if prompt else None,
            }
    return said


def rounded(rows):
    """Ids and texts as they are; logprobs to three places."""
    return [
        row and [[i, round(value, 3), text] for i, value, text in row]
        for row in rows
    ]  # fmt: skip


@pytest.fixture(scope="module")
def in_process(tiny_model):
    async def ask():
        async with running_engine(tiny_model) as (engine, sink):
            return await answers(engine, sink)

    return asyncio.run(ask())


async def test_everything_asked_is_answered_as_in_process(in_process, served, tiny_model):
    async with agent(served, tiny_model) as (engine, sink):
        said = await answers(engine, sink)
        for name, expected in in_process.items():
            assert said[name] == expected, name
        assert engine.load().kv_pages_total > 0


@pytest.mark.parametrize("cut", [1, 7, 23])
async def test_it_takes_up_what_another_engine_began(in_process, served, tiny_model, cut):
    whole = in_process["greedy-100", 0]
    async with agent(served, tiny_model) as (engine, sink):
        emitted = {0: (whole["ids"][:cut], False)}
        engine.submit(job("r1", prompt=prompts()[4], max_tokens=TOKENS, emitted=emitted))
        await finished(sink)
        assert sink.ids() == whole["ids"][cut:]


async def test_an_abort_is_heard_by_the_server_and_operators_are(served, tiny_model):
    async with agent(served, tiny_model, poll_s=0.05) as (engine, sink):
        engine.submit(job("r1", prompt=prompts()[4], max_tokens=900))
        await until(lambda: len(sink.ids()) > 4, "it runs")
        assert engine.load().running == 1
        engine.abort(("r1", 1))
        await until(lambda: not engine._server.health.load.running, "the server has heard it")
        await engine.pause(keep=True)
        await engine.resume()
        assert await engine.reset_prefix_cache()
        engine.submit(job("r2", prompt=prompts()[0], max_tokens=4))
        await finished(sink, "r2")
        assert len(sink.ids("r2")) == 4
