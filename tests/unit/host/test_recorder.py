import asyncio

import pytest

from bus import subjects
from bus.bus import Received
from bus.memory_bus import MemoryBus, MemoryHub
from components.host.clock import ManualClock
from components.host.counters import NAMES_MAX, Counters
from components.host.recorder import BATCH_BYTES, Recorder
from schemas.request import RequestEventsBatched


@pytest.fixture
async def yard():
    hub = MemoryHub()
    bus = MemoryBus(hub, source="router-0", epoch=1)
    await bus.connect()
    batches: list[RequestEventsBatched] = []
    arrived = asyncio.Event()

    def keep(received: Received[RequestEventsBatched]) -> None:
        batches.append(received.message)
        arrived.set()

    await bus.subscribe(subjects.request_events_batched("router-0"), RequestEventsBatched, keep)
    counters = Counters()
    yield Recorder(bus, ManualClock(wall_ms=7000), counters), bus, batches, arrived, counters
    await bus.close()


async def test_steps_of_one_moment_leave_as_one_batch_in_order(yard):
    recorder, _, batches, arrived, counters = yard
    recorder.record("r1", "routed", 1, trace="00-a-b-01", detail={"worker": "decode-0"})
    recorder.record("r1", "dispatched", 1)
    async with asyncio.timeout(2):
        await arrived.wait()
    (batch,) = batches
    assert [(e.request_id, e.step, e.seq) for e in batch.events] == [
        ("r1", "routed", 1),
        ("r1", "dispatched", 2),
    ]
    assert batch.events[0].at_ms == 7000
    assert batch.events[0].detail == {"worker": "decode-0"}
    assert batch.events[0].traceparent == "00-a-b-01"
    assert counters["events_recorded_total"] == 2


async def test_a_full_batch_leaves_at_once_and_no_more_than_that_is_ever_held(yard):
    recorder, bus, batches, *_ = yard
    for _ in range(5):
        recorder.record("r1", "routed", 1, detail={"why": "x" * (BATCH_BYTES // 4)})
    await bus.flush()
    assert [len(b.events) for b in batches] == [4]
    recorder.flush()
    await bus.flush()
    assert [len(b.events) for b in batches] == [4, 1]
    recorder.flush()
    await bus.flush()
    assert len(batches) == 2


async def test_an_event_that_no_bus_can_carry_is_counted_and_dropped():
    bus = MemoryBus(MemoryHub(payload_bytes_max=1000), source="router-0", epoch=1)
    await bus.connect()
    counters = Counters()
    recorder = Recorder(bus, ManualClock(), counters)
    recorder.record("r1", "routed", 1, detail={"why": ["x" * 2000]})
    recorder.flush()
    assert counters == {"events_too_large_total": 1}
    await bus.close()


def test_a_counter_that_is_named_after_data_is_a_bug():
    counters = Counters()
    for number in range(NAMES_MAX):
        counters.add(f"c{number}")
    counters.add("c1", 4)
    assert counters["c1"] == 5
    with pytest.raises(AssertionError, match="made of data"):
        counters.add("one more")
