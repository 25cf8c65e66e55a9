"""The figures say what happened, worked out by hand."""

import pytest

from components.bench.records import Record
from components.bench.report import Slo, as_text, percentile, spread_ms, summary


def ended(  # arrival at 1 s unless said
    first_s: float, gaps_s: list[float], *, arrival_s: float = 1.0, error: str | None = None
) -> Record:
    record = Record(0, arrival_s, prompt_tokens=10, output_tokens_asked=len(gaps_s) + 1)
    record.sent_s = arrival_s
    now_s = first_s
    record.on_text("a", now_s)
    for gap_s in gaps_s:
        now_s += gap_s
        record.on_text("b", now_s)
    record.done_s, record.output_tokens, record.error = now_s, len(gaps_s) + 1, error
    return record


def test_percentiles_lie_on_the_line_between_neighbours():
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 0.5) == 3.0
    assert percentile([1.0, 2.0], 0.9) == pytest.approx(1.9)
    assert percentile([7.0], 0.99) == 7.0


def test_a_spread_of_nothing_is_nothing():
    assert spread_ms([]) is None
    assert spread_ms([None]) is None
    assert spread_ms([0.001, 0.003]) == {
        "mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0,
    }  # fmt: skip


def test_latencies_count_from_the_arrival_and_not_from_the_sending():
    late = ended(2.5, [0.1, 0.3])
    late.sent_s = 2.0  # the generator, or a full server, kept it back for a second
    assert late.ttft_s == pytest.approx(1.5)
    assert late.e2e_s == pytest.approx(1.9)
    assert summary([late], Slo(), {})["generator"]["late_ms"]["max"] == 1000.0


def test_the_time_per_output_token_is_spread_over_the_tokens_after_the_first():
    record = ended(1.2, [0.1, 0.3])
    assert record.tpot_s == pytest.approx(0.2)
    record.output_tokens = 5  # a piece of text may be several tokens
    assert record.tpot_s == pytest.approx(0.1)
    assert ended(1.2, []).tpot_s is None


def test_what_failed_is_counted_by_code_and_not_timed():
    figures = summary([ended(1.1, [0.1]), ended(9.0, [], error="http_503")], Slo(), {})
    assert (figures["requests"], figures["ok"], figures["errors"]) == (2, 1, {"http_503": 1})
    assert figures["ttft_ms"]["max"] == pytest.approx(100)


def test_a_request_that_never_ended_is_an_error():
    assert summary([Record(0, 0.0, 1, 1)], Slo(), {})["errors"] == {"unfinished": 1}


def test_goodput_counts_what_kept_both_bounds_over_all_requests():
    records = [
        ended(1.1, [0.02, 0.02]),  # keeps both
        ended(1.5, [0.02, 0.02]),  # first token late
        ended(1.1, [0.02, 0.10]),  # 60 ms per token
        ended(1.1, [0.02, 0.02], error="cut_stream"),
    ]
    goodput = summary(records, Slo(ttft_ms=200, itl_ms=50), {})["goodput"]
    assert (goodput["requests"], goodput["share"]) == (1, 0.25)
    only_first = summary(records, Slo(ttft_ms=200), {})["goodput"]
    assert only_first["requests"] == 2


def test_without_bounds_there_is_no_goodput():
    assert summary([ended(1.1, [0.1])], Slo(), {})["goodput"] is None


def test_rates_are_over_the_time_from_the_first_arrival_to_the_last_end():
    records = [ended(1.1, [0.1] * 9, arrival_s=1.0), ended(4.0, [1.0], arrival_s=3.0)]
    figures = summary(records, Slo(), {})
    assert figures["duration_s"] == 4.0
    assert figures["output_tokens_per_s"] == 3.0
    assert figures["requests_per_s"] == 0.5


def test_an_answer_of_another_length_is_counted():
    record = ended(1.1, [0.1])
    record.output_tokens = 1
    assert summary([record], Slo(), {})["off_length"] == 1


def test_equal_text_has_equal_hashes_however_it_was_cut():
    one, other = Record(0, 0.0, 1, 1), Record(1, 0.0, 1, 1)
    one.on_text("switchyard", 1.0)
    other.on_text("switch", 1.0)
    other.on_text("yard", 2.0)
    assert one.to_plain()["text_hash"] == other.to_plain()["text_hash"]
    other.on_text("!", 3.0)
    assert one.to_plain()["text_hash"] != other.to_plain()["text_hash"]


def test_the_text_for_people_names_every_error_and_the_goodput():
    records = [ended(1.1, [0.02]), ended(1.1, [], error="timeout")]
    text = as_text(summary(records, Slo(ttft_ms=200), {}))
    assert "1 of 2 ok" in text
    assert "1 x timeout" in text
    assert "50.0% of the requests" in text
    assert "TTFT <= 200 ms" in text


def test_a_run_in_which_nothing_succeeded_can_be_told():
    text = as_text(summary([ended(1.1, [], error="timeout")], Slo(), {}))
    assert "0 of 1 ok" in text
