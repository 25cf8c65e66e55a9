"""The index finds a request's messages without decoding them, and stays within its bound."""

from components.replay.index import PLACES_MAX, RequestIndex, ids_in
from schemas.engine import EngineLoadReported
from schemas.examples import example
from schemas.request import RequestEvent, RequestEventsBatched
from tests.support.past import PastInMemory


def batch(*ids: str) -> bytes:
    events = tuple(
        RequestEvent(request_id=i, step="accepted", attempt=1, at_ms=1, seq=n, detail={"a": "b"})
        for n, i in enumerate(ids)
    )
    return PastInMemory().add("S", "s", RequestEventsBatched(events=events)).data


def test_the_ids_of_a_batch_are_read_without_its_events():
    assert ids_in(batch("a", "b", "a")) == {"a", "b"}


def test_what_is_no_batch_speaks_of_nobody():
    other = PastInMemory().add("S", "s", example(EngineLoadReported)).data
    assert [ids_in(data) for data in (other, b"", b"rubbish", b"\x91\x01", b"\x80")] == [set()] * 5


def test_places_come_in_order_and_once():
    index = RequestIndex(10)
    index.add(3, ["a", "b"])
    index.add(5, ["a", "a"])
    assert (list(index.places("a")), list(index.places("b"))) == ([3, 5], [3])
    assert not index.places("c")


def test_the_oldest_id_goes_when_it_is_full_and_that_is_counted():
    index = RequestIndex(2)
    for seq, name in enumerate("abc", start=1):
        index.add(seq, [name])
    assert (len(index), index.forgotten_total) == (2, 1)
    assert not index.places("a")


def test_one_request_takes_no_more_than_its_share():
    index = RequestIndex(2)
    for seq in range(1, 2 * PLACES_MAX):
        index.add(seq, ["a"])
    assert len(index.places("a")) == PLACES_MAX
