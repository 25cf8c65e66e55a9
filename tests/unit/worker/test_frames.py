"""Frames leave once per loop turn and gateway; what left can be had again, exactly."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import codec
from components.worker.frames import ANSWER_BYTES_MAX, Began, ChoiceEnded, Frames
from components.worker.stream_buffer import ChoiceBuffer
from schemas.attempt import StreamPosition
from schemas.frames import FINISH, FIRST_INDEX, TEXT, TOKEN_IDS

EPOCH = 77
KEY = ("r1", 1)


class Wire:
    """A ``Frames`` whose loop turn ends when the test says so."""

    def __init__(self, **more):
        self.sent: list[Any] = []
        self.due: list[Any] = []
        bounds = {"streams_max": 100, "kept_bytes_max": 10_000_000, "kept_s": 30.0, "now_s": 5.0}
        self.frames = Frames(EPOCH, self._send, self.due.append, **{**bounds, **more})

    def _send(self, gateway, payload):
        epoch, seq, entries = codec.unpack_frame(payload)
        assert epoch == EPOCH
        self.sent.append((gateway, seq, entries))

    def turn(self):
        due, self.due[:] = list(self.due), []
        for flush in due:
            flush()
        sent, self.sent = self.sent, []
        return sent

    def stream(self, key=KEY, gateway="gateway-0", starts=None):
        self.frames.open(key, gateway)
        self.frames.begin(key, starts or {0: 0})
        return self

    def add(self, *entries):
        return self.frames.add(list(entries))


def entry(index, *ids, key=KEY, choice=0, text="x", extra=None, finish=None):
    return (*key, choice, index, list(ids), text, extra, finish)


def at(index, key=KEY, choice=0):
    return StreamPosition(request_id=key[0], attempt=key[1], choice=choice, next_index=index)


def content(entries):
    ids = [i for e in entries for i in e[TOKEN_IDS]]
    return ids, "".join(e[TEXT] for e in entries)


# Frames


def test_what_one_turn_gives_leaves_as_one_frame_per_gateway():
    wire = Wire().stream().stream(("r2", 1), "gateway-1").stream(("r3", 1))
    wire.add(entry(0, 5), entry(0, 6, key=("r2", 1)))
    wire.add(entry(0, 7, key=("r3", 1)), entry(1, 8))
    sent = wire.turn()
    assert [(gateway, len(entries)) for gateway, _, entries in sent] == [
        ("gateway-0", 3),
        ("gateway-1", 1),
    ]
    assert wire.turn() == []


def test_a_frame_has_at_most_64_entries_and_frames_are_numbered():
    wire = Wire()
    for number in range(130):
        wire.stream((f"r{number}", 1))
    wire.add(*[entry(0, 5, key=(f"r{number}", 1)) for number in range(130)])
    assert [(seq, len(entries)) for _, seq, entries in wire.turn()] == [(1, 64), (2, 64), (3, 2)]


def test_the_first_token_and_each_end_are_noticed():
    wire = Wire().stream(KEY, starts={0: 0, 1: 3})
    assert wire.add(entry(0, 5)) == [Began(KEY)]
    assert wire.add(entry(3, 6, 7, choice=1), entry(1, 8)) == []
    end = ["stop", None, 0]
    assert wire.add(entry(5, 9, choice=1, finish=end)) == [ChoiceEnded(KEY, end, 3)]


def test_tokens_of_nobody_go_nowhere():
    wire = Wire()
    assert wire.add(entry(0, 5)) == []
    assert wire.turn() == []


def test_a_dropped_stream_says_nothing_more_not_even_what_waited():
    wire = Wire().stream().stream(("r2", 1))
    wire.add(entry(0, 5), entry(0, 6, key=("r2", 1)))
    wire.frames.drop(KEY)
    [(_, _, entries)] = wire.turn()
    assert [e[0] for e in entries] == ["r2"]
    assert wire.frames.resume([at(0)], "gateway-0").unknown == (at(0),)


def test_a_failed_stream_ends_every_open_choice():
    wire = Wire().stream(starts={0: 0, 1: 0})
    wire.add(entry(0, 5, finish=["stop", None, 0]), entry(0, 6, choice=1))
    wire.turn()
    wire.frames.fail(KEY, "error")
    [(_, _, entries)] = wire.turn()
    assert [(e[2], e[FIRST_INDEX], e[FINISH]) for e in entries] == [(1, 1, ["error", None, 0])]


def test_live_streams_say_once_a_second_where_they_are():
    wire = Wire().stream().stream(("r2", 1))
    wire.add(entry(0, 5, 6), entry(0, 5, key=("r2", 1), finish=["stop", None, 0]))
    wire.turn()
    wire.frames.on_tick(10.0)
    [(_, _, entries)] = wire.turn()
    assert entries == [("r1", 1, 0, 2, [], "", None, None)]
    wire.frames.on_tick(10.9)
    assert wire.turn() == []
    wire.frames.on_tick(11.0)
    assert len(wire.turn()) == 1


# Resume


def test_a_reader_gets_exactly_what_it_misses():
    wire = Wire().stream(starts={0: 10})
    for index in range(10, 20):
        wire.add(entry(index, index * 2, text=f"<{index}>"))
    for start in range(10, 21):
        resumed = wire.frames.resume([at(start)], "gateway-0")
        assert content(resumed.entries) == (
            [2 * i for i in range(start, 20)],
            "".join(f"<{i}>" for i in range(start, 20)),
        )
        assert (resumed.unknown, resumed.more) == ((), False)
        assert not resumed.entries or resumed.entries[0][FIRST_INDEX] == start


def test_an_end_that_was_lost_comes_again_even_without_ids():
    wire = Wire().stream()
    end = ["stop", None, 0]
    wire.add(entry(0, 5), entry(1, finish=end, text=""))
    [last] = wire.frames.resume([at(1)], "gateway-0").entries
    assert (last[FIRST_INDEX], last[TOKEN_IDS], last[FINISH]) == (1, [], end)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=30),
    extras=st.sets(st.integers(0, 29)),
    finished=st.booleans(),
    data=st.data(),
)
def test_whatever_was_appended_comes_back_from_any_entry_on(sizes, extras, finished, data):
    buffer = ChoiceBuffer(0, 7)
    index, starts, ids, texts = 7, [], [], []
    for number, size in enumerate(sizes):
        starts.append(index)
        chunk = list(range(index, index + size))
        end = ["stop", None, 0] if finished and number == len(sizes) - 1 else None
        extra = {"logprobs": [[i] for i in chunk]} if number in extras else None
        buffer.append(entry(index, *chunk, text=f"<{number}>", extra=extra, finish=end))
        ids += chunk
        texts.append(f"<{number}>")
        index += size
    place = data.draw(st.integers(0, len(sizes) - 1))
    entries = list(buffer.since(starts[place], *KEY))
    assert content(entries) == (ids[starts[place] - 7 :], "".join(texts[place:]))
    expected = [
        [i] for n in sorted(extras) if place <= n < len(sizes) for i in ids_of(starts, sizes, n)
    ]
    assert [p for e in entries if e[6] for p in e[6]["logprobs"]] == expected
    assert [e[FINISH] for e in entries if e[FINISH]] == ([["stop", None, 0]] if finished else [])
    position = starts[place]
    for one in entries:
        assert one[FIRST_INDEX] == position
        position += len(one[TOKEN_IDS])


def ids_of(starts, sizes, number):
    return range(starts[number], starts[number] + sizes[number])


def test_a_long_answer_is_cut_below_a_megabyte_and_says_that_there_is_more():
    wire = Wire().stream().stream(("r2", 1))
    for key in (KEY, ("r2", 1)):
        wire.add(*[entry(i, 1 << 30, key=key, text="word") for i in range(40_000)])
    got, positions = {KEY: 0, ("r2", 1): 0}, True
    answers = 0
    while positions:
        resumed = wire.frames.resume([at(i, key) for key, i in got.items()], "gateway-0")
        assert len(codec.pack(resumed.entries)) < 1_000_000
        for one in resumed.entries:
            assert one[FIRST_INDEX] == got[one[0], one[1]]
            got[one[0], one[1]] += len(one[TOKEN_IDS])
        positions = resumed.more
        answers += 1
    assert got == {KEY: 40_000, ("r2", 1): 40_000}
    assert answers > 1
    assert ANSWER_BYTES_MAX < 1_000_000


def test_a_stream_that_has_not_begun_is_known_and_has_nothing():
    wire = Wire()
    wire.frames.open(KEY, "gateway-0")
    resumed = wire.frames.resume([at(0), at(0, ("r9", 1))], "gateway-0")
    assert (resumed.entries, resumed.unknown) == ([], (at(0, ("r9", 1)),))


def test_a_gateway_that_asks_for_anothers_stream_takes_it_over():
    wire = Wire().stream()
    wire.add(entry(0, 5))
    resumed = wire.frames.resume([at(0)], "gateway-1")
    assert (content(resumed.entries)[0], resumed.rehomed) == ([5], (KEY,))
    wire.turn()
    wire.add(entry(1, 6))
    assert [gateway for gateway, _, _ in wire.turn()] == ["gateway-1"]


# Bounds


def test_finished_streams_are_forgotten_after_a_while():
    wire = Wire(kept_s=5.0, now_s=10.0).stream()
    wire.add(entry(0, 5, finish=["stop", None, 0]))
    wire.frames.on_tick(14.9)
    assert len(wire.frames) == 1
    wire.frames.on_tick(15.0)
    assert (len(wire.frames), wire.frames.kept_bytes) == (0, 0)


def test_memory_is_bounded_finished_streams_go_first_then_the_beginnings_of_live_ones():
    wire = Wire(kept_bytes_max=60_000).stream().stream(("r2", 1))
    wire.add(*[entry(i, 9, key=("r2", 1)) for i in range(2000)])
    wire.add(entry(2000, 9, key=("r2", 1), finish=["stop", None, 0]))
    for index in range(20_000):
        wire.add(entry(index, 9))
        assert wire.frames.kept_bytes <= 60_000
    assert wire.frames.resume([at(0), at(0, ("r2", 1))], "gateway-0").unknown == (
        at(0),
        at(0, ("r2", 1)),
    )
    assert content(wire.frames.resume([at(19_990)], "gateway-0").entries)[0] == [9] * 10


def test_the_number_of_streams_is_bounded_by_forgetting_finished_ones():
    wire = Wire(streams_max=3)
    for number in range(10):
        key = (f"r{number}", 1)
        wire.stream(key).add(entry(0, 5, key=key, finish=["stop", None, 0]))
    assert len(wire.frames) == 3


def test_a_stream_that_is_opened_again_begins_anew():
    wire = Wire().stream()
    wire.add(entry(0, 5, finish=["stop", None, 0]))
    wire.stream().add(entry(0, 6))
    assert content(wire.frames.resume([at(0)], "gateway-0").entries)[0] == [6]
    wire.frames.drop(KEY)
    assert (len(wire.frames), wire.frames.kept_bytes) == (0, 0)


def test_a_position_past_the_end_is_unknown():
    wire = Wire().stream()
    wire.add(entry(0, 5))
    assert wire.frames.resume([at(2)], "gateway-0").unknown == (at(2),)


@pytest.mark.parametrize("size", [1, 3])
def test_kept_bytes_count_what_is_kept(size):
    wire = Wire().stream()
    wire.add(entry(0, *range(size), extra={"logprobs": [[]] * size}))
    assert wire.frames.kept_bytes == wire.frames._streams[KEY].size_bytes > 0
    wire.frames.drop(KEY)
    assert wire.frames.kept_bytes == 0
