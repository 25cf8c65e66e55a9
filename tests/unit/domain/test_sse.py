"""Events come out whole however the bytes were cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.domain.sse import Events, EventTooLong

STREAM = (
    b': hello\r\nid: 0:1\r\ndata: {"a": 1}\r\n\r\n'
    b"data:first\ndata: second\n\nevent: x\n\ndata: [DONE]\n\n"
)
EVENTS = [b'{"a": 1}', b"first\nsecond", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_of_the_stream_gives_the_same_events(cuts: list[int]):
    places = [0, *sorted(cuts), len(STREAM)]
    reader = Events()
    pieces = [STREAM[begin:end] for begin, end in pairwise(places)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


def test_an_event_is_not_given_before_its_blank_line():
    reader = Events()
    assert reader.feed(b"data: half\n") == []
    assert reader.feed(b"\n") == [b"half"]


def test_a_line_without_end_is_given_up():
    reader = Events(100)
    reader.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLong):
        reader.feed(b"x" * 20)
