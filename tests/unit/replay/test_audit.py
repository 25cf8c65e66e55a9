"""Whatever is lost, late, twice or out of order: what is reported is what is not there."""

from hypothesis import given
from hypothesis import strategies as st

from components.replay.audit import Audit, Gap

KEY = ("e.v1", "gateway-0", 100)
STREAMS = {"e.v1": "REQUESTS"}


def heard(audit: Audit, *seqs: int, now_s: float = 0.0, epoch: int = 100) -> None:
    for seq in seqs:
        audit.on_event("REQUESTS", ("e.v1", "gateway-0", epoch), seq, now_s)


def told(audit: Audit, count: int, now_s: float = 0.0, epoch: int = 100) -> None:
    audit.on_published(STREAMS, "gateway-0", epoch, {"e.v1": count, "other.v1": 5}, now_s)


def missing(gaps: list[Gap]) -> set[int]:
    found = set[int]()
    for gap in gaps:
        numbers = set(range(gap.first_seq, gap.last_seq + 1))
        found = found - numbers if gap.filled else found | numbers
    return found


def test_a_hole_is_told_once_after_its_grace():
    audit = Audit(grace_s=3)
    heard(audit, 1, 2, 5)
    assert audit.on_tick(3.0) == []
    assert (audit.waiting(), audit.oldest_wait_s(3.0)) == (2, 3.0)
    assert audit.on_tick(3.1) == [Gap("REQUESTS", "e.v1", "gateway-0", 100, 3, 4)]
    assert audit.on_tick(99.0) == []
    assert audit.waiting() == 0


def test_what_comes_within_the_grace_was_never_missing():
    audit = Audit(grace_s=3)
    heard(audit, 1, 4)
    heard(audit, 3, 2, now_s=2.0)
    assert audit.on_tick(9.0) == []


def test_the_end_of_a_line_is_missing_when_its_process_says_so():
    audit = Audit(grace_s=3)
    heard(audit, 1, 2)
    told(audit, 5)
    assert missing(audit.on_tick(4.0)) == {3, 4, 5}
    # Nothing of a line was ever stored.
    other = Audit(grace_s=3)
    told(other, 3)
    assert missing(other.on_tick(4.0)) == {1, 2, 3}


def test_what_was_told_before_it_was_read_is_no_gap():
    audit = Audit(grace_s=3)
    told(audit, 3)
    heard(audit, 1, 2, 3, now_s=1.0)
    told(audit, 3, now_s=2.0)
    assert audit.on_tick(9.0) == []


def test_what_an_earlier_audit_told_is_not_told_again():
    audit = Audit(grace_s=3)
    audit.on_told(KEY, 2, 4)
    heard(audit, 1, 5, 8)
    assert missing(audit.on_tick(9.0)) == {6, 7}


def test_what_comes_after_all_is_withdrawn():
    audit = Audit(grace_s=3)
    heard(audit, 1, 4)
    assert missing(audit.on_tick(4.0)) == {2, 3}
    heard(audit, 3)
    assert audit.on_tick(5.0) == [Gap("REQUESTS", "e.v1", "gateway-0", 100, 3, 3, filled=True)]
    assert audit.on_tick(6.0) == []


def test_a_line_that_began_before_the_stream_may_have_lost_its_beginning_to_retention():
    audit = Audit(grace_s=3, begins_ms={"REQUESTS": 200})
    heard(audit, 50, 51, 53)
    told(audit, 53)
    assert missing(audit.on_tick(9.0)) == {52}
    audit.on_published(STREAMS, "router-0", 100, {"e.v1": 9}, 0.0)
    assert audit.on_tick(99.0) == []


def test_a_line_that_began_later_is_expected_from_its_first_on():
    audit = Audit(grace_s=3, begins_ms={"REQUESTS": 50})
    heard(audit, 3)
    assert missing(audit.on_tick(9.0)) == {1, 2}


def test_while_nothing_could_be_read_no_grace_ran_out():
    audit = Audit(grace_s=3)
    heard(audit, 1)
    told(audit, 4)
    audit.forgive(10.0)
    assert audit.on_tick(12.0) == []
    assert missing(audit.on_tick(13.1)) == {2, 3, 4}


def test_what_retention_took_before_it_was_read_was_there():
    audit = Audit(grace_s=3)
    heard(audit, 1, 2, 5)
    audit.on_unread("REQUESTS", 200)
    heard(audit, 40, 42)
    told(audit, 42)
    assert missing(audit.on_tick(9.0)) == {41}


def test_a_line_that_was_forgotten_is_not_found_missing_when_it_goes_on():
    audit = Audit(grace_s=3, lines_max=1)
    heard(audit, 1, 2, 3)
    heard(audit, 1, epoch=101)
    heard(audit, 4, 6)
    assert missing(audit.on_tick(9.0)) == {5}


def test_the_tables_are_bounded_and_what_is_forgotten_is_counted():
    audit = Audit(lines_max=2, holes_max=2)
    for epoch in (100, 101, 102):
        heard(audit, 1, epoch=epoch)
    heard(audit, 3, 5, 7, epoch=102)
    assert audit.forgotten_total == 2


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.sets(st.integers(1, n)),
            st.permutations(range(1, n + 1)),
            st.lists(st.integers(0, n), max_size=4),
        )
    )
)
def test_in_any_order_exactly_the_lost_ones_are_found(
    case: tuple[int, set[int], list[int], list[int]],
):
    count, lost, order, said = case
    audit, gaps = Audit(grace_s=3), list[Gap]()
    for place, seq in enumerate(order):
        if seq not in lost:
            heard(audit, seq, now_s=place * 0.01)
            if seq % 3 == 0:
                heard(audit, seq, now_s=place * 0.01)  # twice
        if place < len(said):
            told(audit, said[place], now_s=place * 0.01)
    told(audit, count, now_s=1.0)
    for now_s in (1.0, 4.5, 20.0):
        gaps += audit.on_tick(now_s)
    assert missing(gaps) == lost


def test_of_a_silent_stream_nothing_is_told_and_of_the_others_it_is():
    audit = Audit(grace_s=3)
    heard(audit, 1, 3)
    audit.on_event("FLEET", ("f.v1", "registry-0", 100), 1, 0.0)
    audit.on_event("FLEET", ("f.v1", "registry-0", 100), 4, 0.0)
    [gap] = audit.on_tick(9.0, {"REQUESTS"})
    assert (gap.stream, gap.first_seq, gap.last_seq) == ("FLEET", 2, 3)
    assert (audit.waiting("REQUESTS"), audit.waiting("FLEET")) == (1, 0)
    assert (audit.oldest_wait_s(9.0, "REQUESTS"), audit.oldest_wait_s(9.0, "FLEET")) == (9.0, 0.0)
    # It stores again: what is on its way has its whole grace.
    audit.forgive(10.0, "REQUESTS")
    assert audit.on_tick(12.9) == []
    assert missing(audit.on_tick(13.1)) == {2}


def test_what_was_found_long_ago_is_not_withdrawn_any_more():
    audit = Audit(grace_s=3, remember_s=60)
    heard(audit, 1, 3)
    assert missing(audit.on_tick(4.0)) == {2}
    heard(audit, 5, now_s=50.0)
    assert missing(audit.on_tick(54.0)) == {4}
    assert audit.on_tick(65.0) == []
    heard(audit, 2, 4, now_s=66.0)
    assert [gap.first_seq for gap in audit.on_tick(67.0)] == [4]


def test_what_earlier_audits_told_is_bounded():
    audit = Audit(grace_s=3, told_max=2)
    audit.on_told(("e.v1", "gateway-9", 1), 1, 1)
    audit.on_told(KEY, 2, 2)
    audit.on_told(KEY, 4, 4)
    heard(audit, 1, 3, 5)
    assert audit.on_tick(9.0) == []
    audit.on_event("REQUESTS", ("e.v1", "gateway-9", 1), 2, 9.0)
    assert missing(audit.on_tick(19.0)) == {1}


def test_the_line_silent_for_longest_is_forgotten_and_older_lives_are_not_judged():
    audit = Audit(grace_s=3, lines_max=2)
    for epoch in (100, 101, 100):
        heard(audit, *((1,) if epoch == 101 else (1, 2)), epoch=epoch)
    heard(audit, 1, epoch=102)  # 101 makes room
    heard(audit, 4, epoch=100)
    assert missing(audit.on_tick(9.0)) == {3}
    # Of a life as old as a forgotten one nobody knows what was seen.
    audit.on_published(STREAMS, "gateway-9", 101, {"e.v1": 7}, 9.0)
    assert audit.on_tick(19.0) == []
    audit.on_published(STREAMS, "gateway-9", 102, {"e.v1": 2}, 19.0)
    assert missing(audit.on_tick(29.0)) == {1, 2}


def test_of_what_was_forgotten_nothing_is_missing():
    audit = Audit(grace_s=3, lines_max=1)
    heard(audit, 1, 5)
    audit.on_unread("REQUESTS", 200)
    assert (audit.waiting(), audit.on_tick(9.0)) == (0, [])
    heard(audit, 3, 6, epoch=300)
    assert audit.waiting() == 4
    heard(audit, 1, epoch=301)  # takes its place
    assert (audit.waiting(), audit.on_tick(19.0)) == (0, [])


def test_one_outage_is_one_hole_as_old_as_its_beginning():
    audit = Audit(grace_s=3)
    heard(audit, 1, now_s=10.0)
    told(audit, 3, now_s=11.0)
    told(audit, 7, now_s=13.0)
    assert audit.oldest_wait_s(13.5) == 2.5
    [gap] = audit.on_tick(14.1)
    assert (gap.first_seq, gap.last_seq) == (2, 7)


def test_a_life_that_began_with_the_stream_is_expected_from_its_first_on():
    audit = Audit(grace_s=3, begins_ms={"REQUESTS": 100})
    heard(audit, 2, epoch=100)
    heard(audit, 2, epoch=99)
    assert [gap.epoch for gap in audit.on_tick(9.0)] == [100]


def test_of_a_hole_only_what_no_earlier_audit_has_told_is_told():
    audit = Audit(grace_s=3)
    for first, last in ((10, 12), (5, 9), (20, 20)):
        audit.on_told(KEY, first, last)
    heard(audit, 4, 13, 14, 16, 18, 23, epoch=100)
    heard(audit, 1, epoch=101)
    gaps = [(gap.first_seq, gap.last_seq) for gap in audit.on_tick(9.0) if gap.epoch == 100]
    # 1 to 3 are missing as well: the line is whole.
    assert gaps == [(1, 3), (15, 15), (17, 17), (19, 19), (21, 22)]
