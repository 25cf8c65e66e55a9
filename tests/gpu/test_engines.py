"""Whole handoffs: two real engines on two GPUs, their KV through NCCL. Needs vLLM for CUDA.

Not run yet on two GPUs by us: what is above (links, ranks) has been run on one.
"""

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from bus.server import NatsServer  # noqa: E402
from components.worker.vllm.tiny_model import build  # noqa: E402
from tests.engine.connector.engines import EngineInTest, client_of  # noqa: E402
from tests.gpu.conftest import GPUS  # noqa: E402

pytestmark = [
    pytest.mark.skipif(GPUS < 2, reason="two GPUs are needed"),
    pytest.mark.timeout(600),
]

TOKENS = 24
LENGTHS = (5, 31, 32, 33, 64, 100, 257, 900)
CONNECTOR = {"link": "nccl", "lease_ms": 10_000, "pull_timeout_ms": 8_000}


@pytest.fixture
async def pair(tmp_path):
    build(tmp_path / "tiny")
    server = NatsServer(tmp_path / "nats")
    url = await server.start()
    client = await client_of(url)
    started = []
    for gpu, name in enumerate(("prefill-0", "decode-0")):
        engine = await EngineInTest.start(
            name, tmp_path / "tiny", url, client, tmp_path,
            environment={"CUDA_VISIBLE_DEVICES": str(gpu)}, connector=CONNECTOR,
        )  # fmt: skip
        started.append(engine)
    try:
        for engine in started:
            await engine.ready()
        yield started
    finally:
        for engine in started:
            await engine.stop()
        await client.close()
        await server.stop()


async def test_what_d_decodes_is_what_p_alone_decodes_and_nothing_stays_pinned(pair):
    p, d = pair
    source = random.Random(5)
    for number, length in enumerate(LENGTHS):
        prompt = [source.randrange(8, 264) for _ in range(length)]
        alone = await p.generate(f"alone-{number}", prompt, TOKENS)
        await p.freed_within(10)
        asked = {"do_remote_decode": 1, "transfer_id": f"t{number}"}
        held = (await p.generate(f"p-{number}", prompt, 1, asked))["kv"]
        there = await d.generate(f"d-{number}", prompt, TOKENS, held)
        assert there["ids"] == alone["ids"], f"prompt of {length}"
    hits = (await d.stats())["vllm:external_prefix_cache_hits_total"]
    assert hits > 0
    for engine in pair:
        await engine.freed_within(12)
