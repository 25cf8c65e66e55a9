"""One choice: in order, once each, nothing lost, whoever sends it and however it is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.gateway.streams import FRESH, GAP, OLD, ChoiceStream, Finish, Piece

STOP = ["stop", None, 3]


def words(*ids: int) -> str:
    return "".join(f"w{i} " for i in ids)


def give(stream: ChoiceStream, first: int, *ids: int, finish=None):
    return stream.accept(first, list(ids), words(*ids), None, finish)


def taken(stream: ChoiceStream) -> str:
    piece = stream.take()
    return piece.text if piece else ""


def test_entries_in_order_are_taken_and_merged():
    stream = ChoiceStream()
    assert give(stream, 0, 7) == FRESH
    assert give(stream, 1, 8, 9, finish=STOP) == FRESH
    assert stream.take() == Piece(0, 3, "w7 w8 w9 ", [], Finish("stop", None, 3))
    assert stream.take() is None
    assert list(stream.token_ids) == [7, 8, 9]


def test_a_duplicate_changes_nothing():
    stream = ChoiceStream()
    give(stream, 0, 7, 8)
    assert give(stream, 0, 7, 8) == OLD
    assert give(stream, 1, 8) == OLD
    assert (taken(stream), stream.has_gap) == ("w7 w8 ", False)


def test_what_lies_behind_a_gap_is_held_until_the_gap_is_filled():
    stream = ChoiceStream()
    assert give(stream, 2, 9) == GAP
    assert (stream.has_gap, stream.take()) == (True, None)
    assert give(stream, 0, 7, 8) == FRESH
    assert (taken(stream), stream.has_gap, stream.next_index) == ("w7 w8 w9 ", False, 3)


def test_a_high_water_entry_reveals_a_lost_tail_and_adds_nothing():
    stream = ChoiceStream()
    give(stream, 0, 7)
    assert give(stream, 1) == OLD
    assert not stream.has_gap
    assert give(stream, 3) == GAP
    assert stream.has_gap
    assert give(stream, 1, 8, 9) == FRESH
    assert not stream.has_gap


def test_what_is_held_is_bounded_and_comes_again_by_repair():
    stream = ChoiceStream(held_max=2)
    for index in (1, 2, 3, 4):
        assert give(stream, index, index) == GAP
    assert give(stream, 0, 0) == FRESH
    assert (stream.next_index, stream.has_gap) == (3, True)
    give(stream, 3, 3, 4)
    assert (taken(stream), stream.has_gap) == (words(0, 1, 2, 3, 4), False)


def test_an_entry_across_the_position_is_asked_for_anew_because_text_cannot_be_cut():
    stream = ChoiceStream()
    give(stream, 0, 7, 8)
    assert give(stream, 1, 8, 9) == GAP
    assert stream.has_gap
    assert give(stream, 2, 9) == FRESH
    assert (taken(stream), stream.has_gap) == ("w7 w8 w9 ", False)


def test_text_that_lags_behind_ids_arrives_with_later_ones():
    stream = ChoiceStream()
    stream.accept(0, [7], "", None, None)
    assert stream.take() == Piece(0, 1, "", [], None)
    stream.accept(1, [8], "é", None, None)
    assert stream.take() == Piece(1, 1, "é", [], None)


def test_a_finish_without_ids_flushes_the_text_that_lagged():
    stream = ChoiceStream()
    stream.accept(0, [7], "", None, None)
    assert stream.accept(1, [], "?", None, ["length", None, 0]) == FRESH
    assert stream.take() == Piece(0, 1, "?", [], Finish("length", None, 0))


def test_nothing_follows_the_end():
    stream = ChoiceStream()
    give(stream, 0, 7, finish=STOP)
    assert give(stream, 1, 8) == OLD
    assert give(stream, 5) == OLD
    assert (taken(stream), stream.has_gap) == ("w7 ", False)


def test_what_was_held_for_a_fenced_attempt_is_thrown_away():
    stream = ChoiceStream()
    give(stream, 0, 7)
    give(stream, 2, 99)
    stream.begin_attempt()
    assert (stream.base, stream.has_gap) == (1, False)
    give(stream, 1, 8)
    give(stream, 2, 9)
    assert taken(stream) == "w7 w8 w9 "


def test_logprobs_come_with_their_tokens():
    stream = ChoiceStream()
    stream.accept(0, [7], "a", {"logprobs": [[[7, -0.1, "a"]]]}, None)
    stream.accept(1, [8], "b", {"logprobs": [[[8, -0.2, "b"]]]}, None)
    piece = stream.take()
    assert piece is not None
    assert piece.logprobs == [[[7, -0.1, "a"]], [[8, -0.2, "b"]]]


@pytest.mark.parametrize(
    ("ids", "error"), [([-1], OverflowError), (["7"], TypeError), ([2**40], OverflowError)]
)
def test_ids_that_are_none_leave_the_stream_as_it_was(ids, error):
    stream = ChoiceStream()
    with pytest.raises(error):
        stream.accept(0, [5, *ids], "text", None, STOP)
    assert (stream.next_index, stream.take(), stream.finish) == (0, None, None)


@given(st.data())
def test_any_disorder_with_repair_gives_the_exact_text_once(data):
    """Entries are cut anywhere, shuffled, repeated and lost; a repair sends from the gap on."""
    ids = list(range(data.draw(st.integers(1, 30))))
    cuts = sorted({0, len(ids), *data.draw(st.lists(st.sampled_from(ids)))})
    entries = [ids[a:b] for a, b in itertools.pairwise(cuts)]
    kept = data.draw(st.lists(st.sampled_from(entries), max_size=40))
    stream = ChoiceStream(held_max=data.draw(st.integers(1, 5)))
    text = ""
    for entry in kept:
        give(stream, entry[0], *entry)
        text += taken(stream) if data.draw(st.booleans()) else ""
    give(stream, len(ids))
    rest = ids[stream.next_index :]
    assert stream.has_gap == bool(rest)
    give(stream, stream.next_index, *rest, finish=STOP)
    assert text + taken(stream) == words(*ids)
    assert list(stream.token_ids) == ids
