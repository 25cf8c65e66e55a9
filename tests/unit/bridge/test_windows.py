"""The replay window against a plain set of what was seen."""

from hypothesis import given
from hypothesis import strategies as st

from components.bridge.windows import DUPLICATE_S, RECENT, WINDOW, Verdict, Windows
from components.domain.signed_frame import Frame

SENDER = ("k", "e")
LATER_S = 2 * DUPLICATE_S


def take(
    windows: Windows,
    epoch: int = 1,
    seq: int = 1,
    *,
    now_s: float = 0.0,
    sent_ms: int = 0,
    wall_ms: int = 0,
    mac: bytes | None = None,
    sender: tuple[str, str] = SENDER,
) -> Verdict:
    """One frame; another ``mac`` makes it another frame under the same number."""
    mac = b"%d %d" % (epoch, seq) if mac is None else mac
    return windows.take(sender, Frame("k", epoch, seq, sent_ms, b"", mac), now_s, wall_ms)


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=60))
def test_each_number_is_new_once_and_what_is_too_old_is_refused(numbers: list[int]):
    windows, seen = Windows(4, 1000), set[int]()
    for turn, seq in enumerate(numbers):
        highest = max(seen, default=0)
        verdict = take(windows, seq=seq, now_s=turn * LATER_S)
        if seq in seen or (seen and seq <= highest - WINDOW):
            assert verdict == "replayed"
            continue
        assert verdict == ("new" if seq > highest else "late")
        seen.add(seq)
    if seen:
        assert windows.heard(SENDER) == len(seen)
        assert windows.lost(SENDER) == max(seen) - min(seen) + 1 - len(seen)


def test_the_same_frame_is_a_copy_for_a_moment_and_a_replay_from_then_on():
    windows = Windows(4, 1000)
    assert take(windows, seq=5, now_s=1.0) == "new"
    assert take(windows, seq=5, now_s=1.0) == "copy"
    assert take(windows, seq=5, now_s=1.0 + DUPLICATE_S) == "copy"
    # The time runs from the first one: copies of copies prolong nothing.
    assert take(windows, seq=5, now_s=1.01 + DUPLICATE_S) == "replayed"
    assert windows.heard(SENDER) == 1


def test_what_came_late_has_copies_too():
    windows = Windows(4, 1000)
    take(windows, seq=5)
    assert [take(windows, seq=4), take(windows, seq=4)] == ["late", "copy"]


def test_another_frame_under_a_number_that_was_used_is_no_copy():
    windows = Windows(4, 1000)
    take(windows, seq=5)
    assert take(windows, seq=5, mac=b"other") == "replayed"


def test_copies_are_told_among_the_last_few_only():
    windows = Windows(4, 1000)
    for seq in range(1, RECENT + 2):
        take(windows, seq=seq)
    assert take(windows, seq=1) == "replayed"
    assert take(windows, seq=2) == "copy"


def test_a_life_is_new_only_when_its_clock_is_near_ours():
    windows = Windows(4, 1000)
    assert take(windows, 5, 1, sent_ms=10_000, wall_ms=10_999) == "new"
    assert take(windows, 6, 1, sent_ms=10_000, wall_ms=11_001) == "clock"
    # Within a life the clock says nothing: its numbers do.
    assert take(windows, 5, 2, sent_ms=10_000, wall_ms=99_000) == "new"
    assert take(windows, 4, 3, sent_ms=99_000, wall_ms=99_000) == "old_epoch"


def test_what_was_sent_before_our_start_is_not_believed_after_it():
    windows = Windows(4, 30_000, started_s=100.0, started_ms=500_000)

    def played(after_s: float) -> Verdict:
        wall_ms = 500_000 + round(after_s * 1e3)
        return take(windows, now_s=100.0 + after_s, sent_ms=499_999, wall_ms=wall_ms)

    assert [played(after_s) for after_s in (0.0, 10.0, 29.9)] == ["before_start"] * 3
    # From then on its clock alone says that it is old.
    assert played(30.1) == "clock"
    assert take(windows, now_s=100.0, sent_ms=500_000, wall_ms=500_000) == "new"


def test_a_new_life_that_began_before_our_start_is_believed_by_what_it_sends_after_it():
    windows = Windows(4, 30_000, started_s=100.0, started_ms=500_000)
    assert take(windows, 499_000, 700, now_s=101.0, sent_ms=501_000, wall_ms=501_000) == "new"


def test_a_clock_that_is_behind_costs_as_much_as_it_is_behind_and_no_more():
    windows = Windows(4, 30_000, started_s=100.0, started_ms=500_000)

    def behind(after_s: int) -> Verdict:
        wall_ms = 500_000 + after_s * 1000
        return take(
            windows, seq=after_s, now_s=100.0 + after_s, sent_ms=wall_ms - 20_000, wall_ms=wall_ms
        )

    assert [behind(after_s) for after_s in (1, 19, 20, 21)] == [
        "before_start",
        "before_start",
        "new",
        "new",
    ]


def test_our_own_clock_set_back_after_the_start_shuts_nobody_out_for_long():
    windows = Windows(4, 30_000, started_s=100.0, started_ms=9_000_000)  # hours ahead
    assert take(windows, now_s=101.0, sent_ms=501_000, wall_ms=501_000) == "before_start"
    assert take(windows, now_s=130.1, sent_ms=530_100, wall_ms=530_100) == "new"


def test_senders_are_bounded_and_the_most_silent_one_makes_room():
    windows = Windows(2, 1000)
    for name in ("a", "b", "a", "c"):
        take(windows, sender=("k", name))
    assert len(windows) == 2
    assert take(windows, sender=("k", "b")) == "new"
    assert windows.lost(("k", "unknown")) == windows.heard(("k", "unknown")) == 0


def test_the_window_is_as_wide_as_it_says():
    windows = Windows(4, 1000)
    take(windows, seq=1)
    assert take(windows, seq=WINDOW, now_s=1.0) == "new"
    assert take(windows, seq=1, now_s=2.0) == "replayed"  # still seen
    assert take(windows, seq=2, now_s=2.0) == "late"
    assert take(windows, seq=2 + WINDOW, now_s=3.0) == "new"
    assert take(windows, seq=3, now_s=4.0) == "late"
    # A jump by the whole width leaves nothing of what was seen, and nothing in doubt.
    assert take(windows, seq=2 + 2 * WINDOW, now_s=5.0) == "new"
    assert take(windows, seq=2 + WINDOW, now_s=6.0) == "replayed"
    assert take(windows, seq=3 + WINDOW, now_s=6.0) == "late"


def test_a_clock_may_differ_by_its_bound_and_no_more():
    for ahead_ms in (1000, -1000):
        assert take(Windows(4, 1000), sent_ms=5000 + ahead_ms, wall_ms=5000) == "new"
    for ahead_ms in (1001, -1001):
        assert take(Windows(4, 1000), sent_ms=5000 + ahead_ms, wall_ms=5000) == "clock"


def test_a_sender_s_new_life_counts_as_a_word_of_it():
    windows = Windows(2, 1000)
    take(windows, sender=("k", "a"))
    take(windows, sender=("k", "b"))
    take(windows, epoch=2, sender=("k", "a"))
    take(windows, sender=("k", "c"))  # b makes room
    assert take(windows, epoch=2, sender=("k", "a"), now_s=LATER_S) == "replayed"
    assert take(windows, sender=("k", "b"), now_s=LATER_S) == "new"
