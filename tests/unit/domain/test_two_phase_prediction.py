"""The prediction of a fleet: placement, transfer and limits by hand, then a known figure."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from components.domain.engine_model import EngineLimits, RequestTooLarge
from components.domain.profiles import ConstantProfile, StepTimeProfile, profile_named, transfer_s
from components.domain.traces import Arrival, parse_azure, rescaled
from components.simulator.two_phase import Fleet, Predicted, predict

AZURE_SLICE = Path(__file__).parents[2] / "data" / "azure_conv_slice.csv.gz"

CONSTANT = ConstantProfile(ttft_ms=50.0, itl_ms=10.0, kv_bytes_per_token=1_000_000)
# 1 MB per token over 10 GB/s: 0.1 ms per token, and 5 ms on the way.
TWO_PHASE = Fleet(bandwidth_gb_per_s=10.0, transfer_latency_ms=5.0)


def test_a_lone_request_takes_overhead_prefill_transfer_and_decode():
    [found] = predict([Arrival(3.0, 200, 11)], CONSTANT, replace(TWO_PHASE, overhead_ms=7.0))
    # 7 + 50 + (5 + 20) + 10 for the first token; ten more.
    assert found.ttft_s == pytest.approx(0.092)
    assert found.e2e_s == pytest.approx(0.192)
    assert found.finish_s == pytest.approx(3.192)
    assert (found.engine, found.decode_engine) == (0, 0)


def test_an_aggregated_engine_has_no_transfer():
    fleet = Fleet(prefill=0, decode=0, aggregated=1)
    [found] = predict([Arrival(0.0, 200, 11)], CONSTANT, fleet)
    assert [found.ttft_s, found.e2e_s] == pytest.approx([0.050, 0.150])


def test_the_measured_profile_gives_the_sum_of_its_parts():
    profile = profile_named("llama3-8b/tp1/h100")
    assert isinstance(profile, StepTimeProfile)
    [found] = predict([Arrival(0.0, 1_000, 101)], profile, Fleet())
    decode_ms = sum(
        profile.step_ms(decoding=1, context_tokens=1_000 + token) for token in range(101)
    )
    first_ms = profile.step_ms(decoding=1, context_tokens=1_000)
    before_s = profile.prefill_ms(1_000, 2_048) / 1e3 + transfer_s(1_000, 131_072, 40.0, 2.0)
    assert found.ttft_s == pytest.approx(before_s + first_ms / 1e3)
    assert found.e2e_s == pytest.approx(before_s + decode_ms / 1e3)


def test_round_robin_takes_turns_on_both_sides():
    fleet = replace(TWO_PHASE, prefill=2, decode=3, placement="round_robin")
    found = predict([Arrival(float(at), 10, 2) for at in range(6)], CONSTANT, fleet)
    assert [(p.engine, p.decode_engine) for p in found] == [
        (0, 0), (1, 1), (0, 2), (1, 0), (0, 1), (1, 2)
    ]  # fmt: skip


def test_least_loaded_goes_where_fewest_are_and_takes_turns_among_equals():
    fleet = Fleet(prefill=0, decode=0, aggregated=2)
    arrivals = [Arrival(0.0, 10, 1_000), Arrival(0.1, 10, 1), Arrival(0.3, 10, 1)]
    assert [p.engine for p in predict(arrivals, CONSTANT, fleet)] == [0, 1, 1]
    apart = [Arrival(float(at), 10, 1) for at in range(4)]
    assert [p.engine for p in predict(apart, CONSTANT, fleet)] == [0, 1, 0, 1]


def test_the_first_in_line_waits_for_a_place_on_both_sides():
    fleet = replace(TWO_PHASE, decode=1, prefill=3, running_max=1)
    found = predict([Arrival(0.0, 100, 3)] * 3, CONSTANT, fleet)
    # Each: 50 + 15 + 10 to the first token, 20 more to the end, one after the other.
    assert [p.ttft_s for p in found] == pytest.approx([0.075, 0.170, 0.265])
    assert [p.e2e_s for p in found] == pytest.approx([0.095, 0.190, 0.285])


def test_a_prefill_place_is_free_when_the_kv_has_left():
    fleet = replace(TWO_PHASE, decode=3, prefill=1, running_max=1)
    found = predict([Arrival(0.0, 100, 30)] * 3, CONSTANT, fleet)
    assert [p.ttft_s for p in found] == pytest.approx([0.075, 0.140, 0.205])


def test_shared_blocks_are_hits():
    fleet = Fleet(prefill=0, decode=0, aggregated=1)
    first = Arrival(0.0, 1_024, 1, block_ids=(7, 8))
    second = replace(first, at_s=1.0, prompt_tokens=1_040, block_ids=(7, 9, 10))
    assert [p.hit_tokens for p in predict([first, second], CONSTANT, fleet)] == [0, 512]


def test_speed_makes_everything_but_the_way_faster():
    fast = replace(TWO_PHASE, speed=10.0)
    [found] = predict([Arrival(0.0, 200, 11)], CONSTANT, fast)
    assert found.e2e_s == pytest.approx(0.005 + 0.025 + 0.011)


def test_what_can_never_fit_is_said():
    with pytest.raises(RequestTooLarge):
        predict([Arrival(0.0, 500_000, 1)], CONSTANT)


@pytest.mark.parametrize(
    ("prefill", "decode", "aggregated"), [(1, 0, 0), (0, 1, 0), (0, 0, 0), (1, 1, 1), (-1, -1, 1)]
)
def test_a_fleet_is_of_one_kind(prefill: int, decode: int, aggregated: int):
    with pytest.raises(ValueError, match="fleet"):
        Fleet(prefill=prefill, decode=decode, aggregated=aggregated)


def test_no_arrivals_are_no_predictions():
    assert predict([], CONSTANT) == []


def test_the_two_sides_have_limits_of_their_own():
    fleet = replace(TWO_PHASE, decode_limits=EngineLimits(seqs_max=1))
    found = predict([Arrival(0.0, 100, 3)] * 2, CONSTANT, fleet)
    # Both are there after 50 + 15 ms and take 30 each, one after the other.
    assert [p.e2e_s for p in found] == pytest.approx([0.095, 0.125])


def test_small_engines_let_requests_wait_and_finish_them_all():
    profile = profile_named("llama3-8b/tp1/h100")
    fleet = Fleet(limits=EngineLimits(kv_pages=100), decode_limits=EngineLimits(kv_pages=300))
    arrivals = [Arrival(0.01 * number, 700, 400) for number in range(20)]
    found = predict(arrivals, profile, fleet)
    assert all(p.ttft_s < p.e2e_s < 60.0 for p in found)


def meets_slo(found: Predicted) -> bool:
    """First token within 500 ms and 50 ms per token after it."""
    tokens = max(1, found.arrival.output_tokens - 1)
    return found.ttft_s <= 0.5 and (found.finish_s - found.first_token_s) / tokens <= 0.050


def test_eight_engines_meet_the_slo_of_the_azure_conversation_below_its_cliff_and_not_above():
    # Over the whole hour the cliff is at a mean of 137/s; these six minutes are a bit calmer.
    with gzip.open(AZURE_SLICE, "rt") as lines:
        arrivals = parse_azure(lines)
    profile = profile_named("llama3-8b/tp1/h100")
    fleet = Fleet(prefill=0, decode=0, aggregated=8, placement="round_robin")
    met = {}
    for rate_per_s in (100.0, 250.0):
        found = predict(rescaled(arrivals, rate_per_s), profile, fleet)
        met[rate_per_s] = sum(map(meets_slo, found)) / len(found)
    assert met[100.0] >= 0.99
    assert met[250.0] < 0.9
