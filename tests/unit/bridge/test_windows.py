"""The replay window against a plain set of what was seen."""

from hypothesis import given
from hypothesis import strategies as st

from components.bridge.windows import WINDOW, Windows

SENDER = ("k", "e")


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=60))
def test_each_number_is_new_once_and_what_is_too_old_is_refused(numbers: list[int]):
    windows, seen = Windows(4, 1000), set[int]()
    for seq in numbers:
        highest = max(seen, default=0)
        verdict = windows.take(SENDER, 1, seq, 0, 0)
        if seq in seen or (seen and seq <= highest - WINDOW):
            assert verdict == "replayed"
            continue
        assert verdict == ("new" if seq > highest else "late")
        seen.add(seq)
    if seen:
        assert windows.heard(SENDER) == len(seen)
        assert windows.lost(SENDER) == max(seen) - min(seen) + 1 - len(seen)


def test_a_life_is_new_only_when_its_clock_is_near_ours():
    windows = Windows(4, 1000)
    assert windows.take(SENDER, 5, 1, 10_000, 10_999) == "new"
    assert windows.take(SENDER, 6, 1, 10_000, 11_001) == "clock"
    # Within a life the clock says nothing: its numbers do.
    assert windows.take(SENDER, 5, 2, 10_000, 99_000) == "new"
    assert windows.take(SENDER, 4, 3, 99_000, 99_000) == "old_epoch"


def test_senders_are_bounded_and_the_most_silent_one_makes_room():
    windows = Windows(2, 1000)
    for name in ("a", "b", "a", "c"):
        windows.take(("k", name), 1, 1, 0, 0)
    assert len(windows) == 2
    assert windows.take(("k", "b"), 1, 1, 0, 0) == "new"
    assert windows.lost(("k", "unknown")) == windows.heard(("k", "unknown")) == 0
