"""Step times: the formula against figures worked out by hand, and the facts it must reproduce."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.domain.profiles import (
    ConstantProfile,
    StepTimeProfile,
    UnknownProfileError,
    profile_named,
    profile_names,
    transfer_s,
)

H100 = "llama3-8b/tp1/h100"


def h100() -> StepTimeProfile:
    profile = profile_named(H100)
    assert isinstance(profile, StepTimeProfile)
    return profile


SIMPLE = StepTimeProfile(
    name="simple",
    w0_ms=6.0,
    w1_ms_per_token=0.01,
    p0_ms=-4.0,
    p1_ms_per_token=0.03,
    q_ms_per_pair=1e-6,
    d0_ms=0.5,
    ds_ms_per_seq=0.004,
    dc_ms_per_token=0.00005,
    kv_bytes_per_token=131_072,
    kv_tokens=1_600,
)


def test_a_decode_step_takes_linear_attention_and_host_time():
    # 6 + 0.01*10 | 0.5 + 0.004*10 + 0.00005*20000 | 1
    step_ms = SIMPLE.step_ms(decoding=10, context_tokens=20_000)
    assert step_ms == pytest.approx(6.1 + 1.54 + 1.0)


def test_a_step_without_decodes_has_no_decode_attention():
    assert SIMPLE.step_ms(prefill_tokens=100) == pytest.approx(7.0 + 1.0)


def test_a_large_step_is_bound_by_compute_and_its_attention_grows_with_the_past():
    # Chunk of 1000 after 2000: max(16, 26) | 1e-6 * (1000*2000 + 1000*1000/2) | 1
    pairs = 1000 * 2000 + 1000 * 1000 / 2
    step_ms = SIMPLE.step_ms(prefill_tokens=1000, prefill_pairs=pairs)
    assert step_ms == pytest.approx(26.0 + 2.5 + 1.0)


def test_the_measured_profile_gives_the_step_time_worked_out_from_its_coefficients():
    # 64 sequences of 1000 tokens: 6.126321 + 0.005919*64; 0.641929 + 0.003286*64 + 4.14035e-5*64000
    assert h100().step_ms(decoding=64, context_tokens=64_000) == pytest.approx(11.00718, abs=1e-5)


def test_the_two_branches_of_the_fit_meet_at_627_tokens():
    bends = [
        tokens
        for tokens in range(1, 2000)
        if h100().linear_ms(tokens + 1) - h100().linear_ms(tokens) > 0.02
    ]
    assert bends[0] == 627


@pytest.mark.parametrize(
    ("name", "sequences", "step_ms", "tokens_per_s"),
    [(H100, 32, 24.2, 1_320), ("llama3-8b/tp1/h200", 67, 30.9, 2_170)],
)
def test_a_full_decode_engine_at_long_context_makes_the_known_token_rate(
    name: str, sequences: int, step_ms: float, tokens_per_s: float
):
    profile = profile_named(name)
    assert isinstance(profile, StepTimeProfile)
    context = sequences * 12_206
    assert context <= profile.kv_tokens < (sequences + 1) * 12_206
    found_ms = profile.step_ms(decoding=sequences, context_tokens=context)
    assert found_ms == pytest.approx(step_ms, abs=0.05)
    assert sequences * 1e3 / found_ms == pytest.approx(tokens_per_s, abs=5)


@pytest.mark.parametrize(
    ("name", "us_per_token"),
    [
        (H100, {512: 19.8, 640: 17.4, 768: 17.9, 1024: 18.6, 2048: 19.7}),
        (f"{H100}-table", {512: 22.6, 640: 22.6, 768: 20.9, 1024: 20.7, 1536: 19.8, 2048: 19.5}),
    ],
)
def test_tokens_cost_what_they_should_at_each_step_size(name: str, us_per_token: dict[int, float]):
    profile = profile_named(name)
    assert isinstance(profile, StepTimeProfile)
    for tokens, us in us_per_token.items():
        found = profile.step_ms(prefill_tokens=tokens) / tokens * 1e3
        assert found == pytest.approx(us, abs=0.1), tokens


def test_the_table_is_straight_between_its_points_and_goes_on_after_the_last():
    table = replace(SIMPLE, linear_table_ms=((1, 5.0), (101, 15.0), (201, 45.0)))
    times_ms = [table.linear_ms(tokens) for tokens in (1, 51, 101, 151, 201, 301)]
    assert times_ms == pytest.approx([5.0, 10.0, 15.0, 30.0, 45.0, 75.0])


def test_an_unloaded_prefill_is_the_sum_of_its_chunks():
    # 5000 new after 1000 cached, 2048 a step: two full steps and one of 904.
    found_ms = SIMPLE.prefill_ms(5_000, 2_048, cached_tokens=1_000)
    past, expected_ms = 1_000, 0.0
    for chunk in (2_048, 2_048, 904):
        expected_ms += SIMPLE.step_ms(
            prefill_tokens=chunk, prefill_pairs=chunk * past + chunk**2 / 2
        )
        past += chunk
    assert found_ms == pytest.approx(expected_ms)
    two_ms = 2 * SIMPLE.step_ms(prefill_tokens=2_048) + SIMPLE.q_ms_per_pair * 4_096**2 / 2
    assert SIMPLE.prefill_ms(4_096, 2_048) == pytest.approx(two_ms)


def test_every_profile_of_the_file_is_a_plausible_engine():
    assert len(profile_names()) == 12 + 1 + 1  # measured, one table, constant
    for name in profile_names():
        profile = profile_named(name)
        assert profile.name == name
        assert profile.kv_tokens >= 400_000
        if isinstance(profile, StepTimeProfile):
            decode_ms = profile.step_ms(decoding=1, context_tokens=1_000)
            assert 4 < decode_ms < 35
            assert profile.prefill_ms(2_048, 2_048) > decode_ms


def test_the_constant_profile_reads_its_times_from_its_name():
    assert profile_named("constant") == ConstantProfile()
    profile = profile_named("constant:ttft_ms=50,itl_ms=2.5")
    assert isinstance(profile, ConstantProfile)
    assert (profile.ttft_ms, profile.itl_ms) == (50.0, 2.5)
    assert profile.name == "constant:ttft_ms=50,itl_ms=2.5"


def test_a_parameter_overrides_a_coefficient():
    profile = profile_named(f"{H100}:kv_tokens=20000,host_ms=2")
    assert isinstance(profile, StepTimeProfile)
    assert (profile.kv_tokens, profile.host_ms) == (20_000, 2.0)
    assert profile.w0_ms == h100().w0_ms


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("gpt-5", "llama3-8b/tp1/h100"),
        ("constant:ttft=5", "itl_ms"),
        ("constant:ttft_ms=fast", "not a number"),
        ("constant:ttft_ms=-1", "not a number"),
        ("constant:kv_tokens=1.5", "not a number"),
        ("constant:kv_tokens=0", "must not"),
        ("constant:name=x", "kv_tokens"),
    ],
)
def test_an_unknown_profile_is_refused_with_what_there_is(text: str, because: str):
    with pytest.raises(UnknownProfileError, match=because):
        profile_named(text)


@given(st.text() | st.text("abcdefghijklmnopqrstuvwxyz=,.:_0123456789").map("constant:".__add__))
def test_no_text_makes_the_profile_reader_fail_otherwise(text: str):
    try:
        profile_named(text)
    except UnknownProfileError as error:
        json.dumps(str(error))


def test_a_transfer_takes_its_latency_and_its_bytes():
    # 10,000 tokens of 128 KiB over 50 GB/s: 26.2 ms, plus 2 ms.
    assert transfer_s(10_000, 131_072, 50.0, latency_ms=2.0) == pytest.approx(0.0282144)
    assert transfer_s(0, 131_072, 50.0) == 0.0
