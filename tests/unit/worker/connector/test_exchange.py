"""The agent hears of each transfer once, in its engine's words, and can free any of them."""

import asyncio

import pytest

from bus import subjects
from bus.memory_bus import MemoryBus, MemoryHub
from components.worker.engine import Job, KvArrived, KvFailed, KvSource, Moved, MoveFailed
from components.worker.vllm.connector.config import ConnectorConfig, Held
from components.worker.vllm.connector.exchange import ConnectorExchange
from schemas.body import SamplingParameters
from schemas.links import KvMoved, ReleaseKv

EPOCH = 255
KEY = ("req-1", 2)
TRANSFER = "prefill-0.ff.req-1.2"
JOB = Job(*KEY, phase="prefill", prompt=(1, 2), sampling=SamplingParameters())


class Agent:
    """An exchange, its bus, and a rank that reports."""

    def __init__(self, worker, **options):
        hub = MemoryHub()
        self.bus = MemoryBus(hub, source=worker, epoch=1)
        self.rank = MemoryBus(hub, source=f"{worker}-engine-0", epoch=1)
        self.worker = worker
        config = ConnectorConfig(worker=worker, epoch=EPOCH, nats_url="nats://h:1")
        self.exchange = ConnectorExchange(self.bus, config, **options)
        self.events = []
        self.released = []

    async def start(self):
        await self.bus.connect()
        await self.rank.connect()
        await self.exchange.start(self.events.append)
        for rank in range(2):
            subject = subjects.release_kv(f"{self.worker}-engine-{rank}")
            await self.rank.subscribe(subject, ReleaseKv, lambda r: self.released.append(r.message))
        return self

    async def say(self, side, reason="consumed", rank=0, bytes_moved=10, transfer=TRANSFER):
        moved = KvMoved(
            transfer_id=transfer, side=side, reason=reason, rank=rank, ranks=2,
            bytes_moved=bytes_moved, ms=1.0, detail="",
        )  # fmt: skip
        self.rank.publish(subjects.kv_moved(self.worker), moved)
        await self.rank.flush()
        await self.bus.flush()
        await asyncio.sleep(0)


@pytest.fixture
async def agent():
    made = []

    async def make(worker="prefill-0", **options):
        made.append(await Agent(worker, **options).start())
        return made[-1]

    yield make
    for one in made:
        await one.exchange.stop()
        await one.bus.close()
        await one.rank.close()


def source():
    held = Held(TRANSFER, "prefill-0", EPOCH, 2, 1, "x", 1)
    return KvSource(TRANSFER, "prefill-0", 2, 10, held.params())


async def test_the_agent_names_the_transfer_and_hears_when_it_was_pulled(agent):
    p = await agent()
    assert p.exchange.prefill_params(JOB)["transfer_id"] == TRANSFER
    p.exchange.send_kv(KEY, "decode-0")
    await p.say("sent")
    await p.say("sent")
    assert p.events == [Moved(KEY, 10)]


async def test_a_pull_that_is_over_before_the_grant_is_told_when_it_is_asked_for(agent):
    p = await agent()
    p.exchange.prefill_params(JOB)
    await p.say("sent")
    assert p.events == []
    p.exchange.send_kv(KEY, "decode-0")
    await asyncio.sleep(0)
    assert p.events == [Moved(KEY, 10)]


async def test_blocks_that_were_freed_unpulled_are_a_failed_move(agent):
    p = await agent()
    p.exchange.prefill_params(JOB)
    p.exchange.send_kv(KEY, "decode-0")
    await p.say("sent", "lease_expired")
    assert isinstance(p.events[0], MoveFailed)


async def test_a_release_reaches_every_rank_and_no_event_follows(agent):
    p = await agent(ranks=2)
    p.exchange.prefill_params(JOB)
    p.exchange.send_kv(KEY, "decode-0")
    p.exchange.release(KEY)
    await p.say("sent", rank=0)
    await p.say("sent", rank=1)
    assert [(r.transfer_id, r.epoch) for r in p.released] == [(TRANSFER, EPOCH)] * 2
    assert p.events == []


async def test_what_arrived_is_told_when_all_ranks_have_it(agent):
    d = await agent("decode-0", ranks=2)
    assert d.exchange.decode_params(JOB, source()) == source().params
    await d.say("received", rank=0)
    await d.say("received", rank=0)
    assert d.events == []
    await d.say("received", rank=1)
    assert d.events == [KvArrived(KEY, 20)]


async def test_an_engine_that_recomputes_goes_on_and_one_that_does_not_says_so(agent):
    d = await agent("decode-0")
    d.exchange.decode_params(JOB, source())
    await d.say("received", "peer_lost", bytes_moved=0)
    assert d.events == [KvArrived(KEY, 0)]
    strict = await agent("decode-0", policy="fail")
    strict.exchange.decode_params(JOB, source())
    await strict.say("received", "peer_lost", bytes_moved=0)
    assert isinstance(strict.events[0], KvFailed)


async def test_words_about_transfers_of_others_are_nobodys(agent):
    d = await agent("decode-0")
    await d.say("received", transfer="another")
    assert d.events == []
