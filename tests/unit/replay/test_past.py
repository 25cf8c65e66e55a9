"""An instant becomes a place in a stream by a handful of reads."""

import random

import pytest

from bus.history import Stored
from components.replay.past import place_of, read_between, time_of
from schemas.engine import EngineLoadReported
from schemas.examples import example
from schemas.fleet import FleetJoined
from schemas.request import RequestEvent, RequestEventsBatched
from tests.support.past import PastInMemory


def loads(times: list[int], *, gone: set[int] = frozenset()) -> PastInMemory:  # type: ignore[assignment]
    past = PastInMemory(ENGINE_STATE=())
    for at_ms in times:
        past.add("ENGINE_STATE", "yard.evt.engine.x", example(EngineLoadReported, at_ms=at_ms))
    kept = past.streams["ENGINE_STATE"]
    past.streams["ENGINE_STATE"] = [s for s in kept if s.seq not in gone]
    return past


@pytest.mark.parametrize("seed", range(20))
async def test_the_place_is_that_of_the_last_message_written_by_then(seed: int):
    rng = random.Random(seed)
    times = sorted(rng.randrange(1, 500) for _ in range(rng.randrange(1, 60)))
    gone = {s for s in range(1, len(times)) if rng.random() < 0.3}
    past = loads(times, gone=gone)
    left = [s.seq for s in past.streams["ENGINE_STATE"]]
    for at_ms in (0, 1, 250, 499, 500, times[0], times[-1]):
        want = [seq for seq in left if times[seq - 1] <= at_ms]
        found = await place_of(past, "ENGINE_STATE", at_ms)
        # Between two kept messages any place means the same.
        assert [seq for seq in left if seq <= found] == want


async def test_it_takes_about_as_many_reads_as_the_length_has_digits_in_base_two():
    past = loads(list(range(1, 4097)))
    await place_of(past, "ENGINE_STATE", 1234)
    assert past.reads <= 14


async def test_an_empty_stream_has_no_place():
    assert await place_of(PastInMemory(FLEET=()), "FLEET", 10) == 0


def test_the_time_of_a_message_is_its_writer_s():
    def stored(**of: int) -> Stored:
        return PastInMemory().add("S", "s", example(FleetJoined, **of), at_ms=77)

    assert time_of(stored(at_ms=5)) == 5
    assert time_of(stored(at_ms=0)) == 77
    event = RequestEvent(request_id="r", step="accepted", attempt=1, at_ms=9, seq=1)
    batch = PastInMemory().add("S", "s", RequestEventsBatched(events=(event,)), at_ms=77)
    assert time_of(batch) == 9
    assert time_of(Stored(1, 77, "s", b"rubbish")) == 77


async def test_a_stretch_ends_where_it_was_told_to():
    past = loads([1, 2, 3, 4, 5])
    between = [s.seq async for s in read_between(past, "ENGINE_STATE", 2, 4)]
    assert between == [2, 3, 4]
    assert [s async for s in read_between(past, "ENGINE_STATE", 4, 3)] == []
