"""A real P whose prefills are aborted at any moment holds nothing, long before a lease ends."""

import asyncio
import random
import time

import pytest

pytest.importorskip("vllm")

from bus.nats_bus import NatsBus
from bus.server import NatsServer
from components.worker.vllm.connector.config import ConnectorConfig, transfer_arguments
from components.worker.vllm.connector.exchange import ConnectorExchange
from tests.engine.engines import WITHIN_S, job, running_engine
from tests.support.nats import until

LEASE_MS = 60_000
ROUNDS = 60


async def test_aborts_that_cross_the_end_of_a_prompt_leave_no_block_pinned(tiny_model, tmp_path):
    source = random.Random(11)
    server = NatsServer(tmp_path / "nats")
    url = await server.start()
    config = ConnectorConfig("prefill-0", int(time.time() * 1e3), url, lease_ms=LEASE_MS)
    bus = NatsBus(url, source=config.worker, epoch=config.epoch)
    await bus.connect()
    exchange = ConnectorExchange(bus, config)
    transfer = transfer_arguments(config)
    async with running_engine(tiny_model, exchange, kv_transfer=transfer) as (engine, sink):

        async def prefilled(name):
            began_s = time.monotonic()
            engine.submit(job(name, prompt=prompt_of(source), phase="prefill"))
            await until(lambda: any(e.key == (name, 1) for e in sink.events), name, WITHIN_S)
            return time.monotonic() - began_s

        await prefilled("warm")
        takes_s = await prefilled("timed")
        for name in ("warm", "timed"):
            engine.release((name, 1))
        for number in range(ROUNDS):
            engine.submit(job(f"r{number}", prompt=prompt_of(source), phase="prefill"))
            await asyncio.sleep(takes_s * (0.5 + source.random()))
            engine.abort((f"r{number}", 1))
        deadline_s = time.monotonic() + 5.0
        while not await engine.reset_prefix_cache():  # False as long as a block is in use
            assert time.monotonic() < deadline_s, "blocks are pinned"
            await asyncio.sleep(0.02)
        assert not exchange._sent
    await bus.close()
    await server.stop()


def prompt_of(source):
    return [source.randrange(8, 264) for _ in range(900)]
