"""A stretch in the order of time, page by page, without losing or repeating anything."""

import random

import pytest

from components.replay.reading import BadCursor, merged, page, places_between
from schemas.engine import EngineLoadReported
from schemas.examples import example
from schemas.fleet import FleetJoined
from schemas.past import Happened, ReadPast
from schemas.request import RequestEvent, RequestEventsBatched
from tests.support.past import PastInMemory


def past(seed: int = 1, count: int = 60) -> PastInMemory:
    rng = random.Random(seed)
    made = PastInMemory(FLEET=(), ENGINE_STATE=(), REQUESTS=(), JOURNAL=())
    at_ms = 1_000
    for number in range(count):
        at_ms += rng.randrange(3)
        match rng.randrange(3):
            case 0:
                made.add("FLEET", "yard.evt.fleet.joined.x", example(FleetJoined, at_ms=at_ms))
            case 1:
                load = example(EngineLoadReported, at_ms=at_ms)
                made.add("ENGINE_STATE", "yard.evt.engine.load_reported.x", load)
            case _:
                event = RequestEvent(
                    request_id=f"r{number % 5}", step="accepted", attempt=1, at_ms=at_ms, seq=1
                )
                batch = RequestEventsBatched(events=(event, event))
                made.add("REQUESTS", "yard.evt.request.batch.x", batch)
    return made


async def test_streams_are_merged_by_time():
    made = past()
    places = await places_between(made, list(made.streams), 0, 10_000)
    got = [(at_ms, stream, stored.seq) async for at_ms, stream, stored in merged(made, places)]
    assert len(got) == 60
    assert [at_ms for at_ms, _, _ in got] == sorted(at_ms for at_ms, _, _ in got)
    for stream in made.streams:
        assert [q for _, s, q in got if s == stream] == [x.seq for x in made.streams[stream]]


@pytest.mark.parametrize("limit", [1, 7, 50, 1000])
async def test_pages_give_everything_once(limit: int):
    made = past(2)
    whole = (await page(made, ReadPast(from_ms=0, to_ms=9_999, limit=2000))).events
    asked, pages = ReadPast(from_ms=0, to_ms=9_999, limit=limit), list[Happened]()
    while True:
        reply = await page(made, asked)
        pages += reply.events
        if not reply.cursor:
            break
        asked = asked.model_copy(update={"cursor": reply.cursor})
    assert tuple(pages) == whole


async def test_only_what_was_asked_for():
    made = past(3)
    one = await page(made, ReadPast(from_ms=0, to_ms=9_999, streams=("FLEET",)))
    assert {e.stream for e in one.events} == {"FLEET"}
    about = await page(made, ReadPast(from_ms=0, to_ms=9_999, request_id="r1"))
    assert about.events
    assert all("r1" in e.text for e in about.events)
    part = await page(made, ReadPast(from_ms=1_010, to_ms=1_020))
    assert {1_010 <= e.at_ms <= 1_020 for e in part.events} == {True}


@pytest.mark.parametrize(
    "cursor", ["x", "[]", '{"FLEET": 3}', '{"TOKENS": [1, 2]}', '{"FLEET": []}']
)
async def test_a_cursor_that_is_none_of_ours_is_refused(cursor: str):
    with pytest.raises(BadCursor):
        await page(past(), ReadPast(from_ms=0, to_ms=1, cursor=cursor))
