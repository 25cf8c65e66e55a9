"""The constant profile: times one can work out in the head, and steps that take no time at all."""

from dataclasses import replace

import pytest

from components.domain.engine_model import (
    Admitted,
    EngineLimits,
    EngineModel,
    Finished,
    FirstToken,
    ModelEvent,
    ModelRequest,
    PagesRemoved,
    Preempted,
    PrefillFinished,
    StepEnded,
)
from components.domain.profiles import ConstantProfile
from tests.unit.domain.engine_calls import near

PROFILE = ConstantProfile(ttft_ms=50.0, itl_ms=10.0)
PACED = ConstantProfile()


def until_idle(model: EngineModel) -> list[ModelEvent]:
    events: list[ModelEvent] = []
    while (at_s := model.next_step_at()) is not None:
        events += model.advance(at_s)
    return events


def token_times_ms(events: list[ModelEvent], name: str) -> list[float]:
    return [
        round(event.at_s * 1e3, 6)
        for event in events
        if isinstance(event, StepEnded) and name in event.request_ids
    ]


def test_the_first_token_comes_after_ttft_and_the_next_ones_every_itl_whoever_else_runs():
    model = EngineModel(PROFILE, EngineLimits())
    for number in range(40):
        model.submit(ModelRequest(str(number), 1_000, 5), 0.0037 * number)
    events = until_idle(model)
    for number in range(40):
        start_ms = 3.7 * number
        expected = [start_ms + 50.0 + 10.0 * token for token in range(5)]
        assert token_times_ms(events, str(number)) == pytest.approx(expected)


def test_simultaneous_requests_share_their_steps():
    model = EngineModel(PROFILE, EngineLimits())
    for name in "abc":
        model.submit(ModelRequest(name, 10, 4), 1.0)
    events = [event for event in until_idle(model) if isinstance(event, StepEnded)]
    assert [event.request_ids for event in events] == [("a", "b", "c")] * 4
    assert [event.step for event in events] == [1, 2, 3, 4]


def test_the_times_start_at_admission():
    model = EngineModel(PROFILE, EngineLimits(seqs_max=1))
    model.submit(ModelRequest("a", 10, 3), 0.0)
    model.submit(ModelRequest("b", 10, 1), 0.0)
    events = until_idle(model)
    assert Admitted("b", near(0.070), 0) in events
    assert token_times_ms(events, "b") == pytest.approx([120.0])


def test_a_prefill_takes_ttft_and_a_decode_has_its_first_token_after_itl():
    model = EngineModel(PROFILE, EngineLimits())
    model.submit(ModelRequest("p", 100, kind="prefill"), 0.0)
    model.submit(ModelRequest("d", 100, 2, kind="decode"), 0.0)
    events = until_idle(model)
    assert PrefillFinished("p", near(0.050)) in events
    assert token_times_ms(events, "d") == pytest.approx([10.0, 20.0])
    assert model.gauges().pinned == 1


def test_speed_divides_the_times():
    model = EngineModel(PROFILE, EngineLimits(), speed=5.0)
    model.submit(ModelRequest("a", 100, 2), 0.0)
    assert token_times_ms(until_idle(model), "a") == pytest.approx([10.0, 12.0])
    assert model.predicted_prefill_ms(100) == pytest.approx(10.0)


def test_the_next_event_skips_steps_that_only_count():
    model = EngineModel(PROFILE, EngineLimits())
    model.submit(ModelRequest("a", 100, 500), 0.0)
    model.advance(0.050)
    assert model.next_step_at() == pytest.approx(0.060)
    assert model.next_event_at() == pytest.approx(0.050 + 4.990)
    model.submit(ModelRequest("b", 100, 1), 1.0)
    assert model.next_event_at() == pytest.approx(1.050)


def test_the_newest_is_preempted_and_starts_over():
    model = EngineModel(PROFILE, EngineLimits(kv_pages=4))
    model.submit(ModelRequest("old", 16, 30), 0.0)
    model.submit(ModelRequest("new", 16, 30), 0.001)
    events = until_idle(model)
    # "old" wants its third page with its 18th token, at 50 + 17 * 10 ms; "new" has 17 by then.
    [preempted] = [event for event in events if isinstance(event, Preempted)]
    assert preempted == Preempted("new", near(0.220))
    ended = {event.request_id: event for event in events if isinstance(event, Finished)}
    assert ended["old"].at_s == pytest.approx(0.340)
    # The 18th token after another ttft, 12 more after that.
    assert ended["new"].at_s == pytest.approx(0.340 + 0.050 + 12 * 0.010)
    assert {event.output_tokens for event in ended.values()} == {30}


def test_cached_pages_are_forgotten_before_anybody_is_preempted():
    model = EngineModel(PROFILE, EngineLimits(kv_pages=4))
    model.submit(ModelRequest("a", 32, 1, page_hashes=(1, 2)), 0.0)
    until_idle(model)
    assert model.gauges().kv_pages_cached == 2
    model.submit(ModelRequest("b", 40, 20), 2.0)
    events = until_idle(model)
    assert not [event for event in events if isinstance(event, Preempted)]
    assert [e for e in events if isinstance(e, PagesRemoved)] == [
        PagesRemoved(2.0, (2,)),
        PagesRemoved(near(2.0 + 0.050 + 9 * 0.010), (1,)),
    ]


def test_cancelling_leaves_no_later_token():
    model = EngineModel(PROFILE, EngineLimits())
    model.submit(ModelRequest("a", 16, 30), 0.0)
    model.submit(ModelRequest("b", 16, 30), 0.0)
    model.advance(0.065)
    model.cancel("a", 0.065)
    model.cancel("b", 0.065)
    assert model.next_step_at() is None
    assert model.advance(10.0) == []
    assert model.gauges().kv_pages_used == 0


def test_an_id_that_is_used_again_does_not_get_the_tokens_of_its_earlier_life():
    model = EngineModel(PROFILE, EngineLimits())
    model.submit(ModelRequest("a", 16, 30), 0.0)
    model.cancel("a", 0.020)
    model.submit(ModelRequest("a", 16, 2), 0.030)
    assert token_times_ms(until_idle(model), "a") == pytest.approx([80.0, 90.0])


def test_busy_time_is_the_time_with_somebody_running():
    model = EngineModel(PROFILE, EngineLimits())
    model.submit(ModelRequest("a", 16, 3), 0.0)
    model.advance(0.030)
    assert model.gauges().busy_s == pytest.approx(0.030)
    model.submit(ModelRequest("b", 16, 1), 5.0)
    model.advance(9.0)
    assert model.gauges().busy_s == pytest.approx(0.070 + 0.050)


def test_the_predicted_backlog_is_the_longest_prefill_that_runs():
    model = EngineModel(PROFILE, EngineLimits())
    model.submit(ModelRequest("a", 16, 3), 0.0)
    model.submit(ModelRequest("b", 16, 3), 0.020)
    assert model.predicted_backlog_ms(0.030) == pytest.approx(40.0)


# No time at all


def test_without_time_everything_happens_at_the_instant_of_submission():
    model = EngineModel(PACED, EngineLimits())
    model.submit(ModelRequest("a", 100, 50), 2.5)
    events = until_idle(model)
    assert {event.at_s for event in events} == {2.5}
    assert token_times_ms(events, "a") == [2_500.0] * 50
    assert model.gauges().steps == 50


@pytest.mark.parametrize("steps_max", [1, 7])
def test_one_look_takes_no_more_zero_time_steps_than_allowed(steps_max: int):
    model = EngineModel(PACED, EngineLimits(zero_time_steps_max=steps_max))
    for name in "ab":
        model.submit(ModelRequest(name, 100, 50), 0.0)
    model.advance(0.0)
    looks = 0
    while model.next_step_at() is not None:
        ended = [event for event in model.advance(9.0) if isinstance(event, StepEnded)]
        assert 1 <= len(ended) <= steps_max
        assert all(event.steps == 1 for event in ended)
        looks += 1
    assert looks >= 40 // steps_max


def test_while_zero_time_steps_remain_the_clock_stands_still():
    model = EngineModel(PACED, EngineLimits())
    model.submit(ModelRequest("a", 100, 5), 0.0)
    model.advance(7.0)
    assert model.next_step_at() == model.next_event_at() == 0.0
    until_idle(model)
    assert model.advance(7.0) == []


def test_who_comes_while_others_run_joins_their_steps():
    model = EngineModel(PACED, EngineLimits())
    model.submit(ModelRequest("a", 100, 6), 0.0)
    model.advance(0.0)
    model.advance(0.0)
    model.submit(ModelRequest("b", 100, 6), 1.0)
    events = until_idle(model)
    assert FirstToken("b", 1.0) in events
    together = [e for e in events if isinstance(e, StepEnded) and e.request_ids == ("a", "b")]
    assert len(together) >= 2


def test_a_first_token_keeps_its_time_when_the_steps_after_it_take_none():
    model = EngineModel(replace(PACED, ttft_ms=50.0), EngineLimits())
    model.submit(ModelRequest("a", 100, 3), 0.0)
    model.submit(ModelRequest("b", 100, 3), 0.080)  # a is late to be looked at
    events = until_idle(model)
    assert FirstToken("a", near(0.050)) in events
    assert FirstToken("b", near(0.130)) in events
