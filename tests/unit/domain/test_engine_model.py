"""The engine model by example, mostly on an engine whose steps take 1 ms per token, no more."""

from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import pytest

from components.domain.engine_model import (
    Admitted,
    DuplicateRequest,
    EngineLimits,
    EngineModel,
    EngineModelError,
    Finished,
    FirstToken,
    ModelEvent,
    ModelRequest,
    PagesRemoved,
    PagesStored,
    Preempted,
    PrefillFinished,
    RequestTooLarge,
    StepEnded,
    WaitingQueueFull,
)
from components.domain.profiles import StepTimeProfile, profile_named
from tests.unit.domain.engine_calls import near

T = TypeVar("T")

COUNTING = StepTimeProfile(
    name="1 ms per token",
    w0_ms=0.0,
    w1_ms_per_token=1.0,
    p0_ms=0.0,
    p1_ms_per_token=0.0,
    q_ms_per_pair=0.0,
    d0_ms=0.0,
    ds_ms_per_seq=0.0,
    dc_ms_per_token=0.0,
    kv_bytes_per_token=1,
    kv_tokens=16_000,
    host_ms=0.0,
)


def counting(**limits: int) -> EngineModel:
    return EngineModel(COUNTING, EngineLimits(**limits))


def until_idle(model: EngineModel) -> list[ModelEvent]:
    """Step by step, as a live engine."""
    events: list[ModelEvent] = []
    while (at_s := model.next_step_at()) is not None:
        events += model.advance(at_s)
    return events


def steps(events: list[ModelEvent]) -> list[tuple[float, tuple[str, ...]]]:
    """When each step ended (ms) and whose tokens came with it."""
    return [(round(e.at_s * 1e3, 6), e.request_ids) for e in events if isinstance(e, StepEnded)]


def of_type(kind: type[T], events: list[ModelEvent]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


def test_an_idle_engine_prefills_in_the_predicted_time():
    model = EngineModel(profile_named("llama3-8b/tp1/h100"), EngineLimits())
    model.submit(ModelRequest("a", prompt_tokens=5_000, output_tokens=1), 0.0)
    [first] = of_type(FirstToken, until_idle(model))
    assert first.at_s == pytest.approx(model.predicted_prefill_ms(5_000) / 1e3)
    # Three steps: 2 * 39.28 + 15.58 ms linear, 11.8 ms attention, 3 ms host.
    assert first.at_s * 1e3 == pytest.approx(109.0, abs=0.1)


def test_decoding_takes_the_sum_of_its_growing_steps():
    profile = profile_named("llama3-8b/tp1/h100")
    assert isinstance(profile, StepTimeProfile)
    model = EngineModel(profile, EngineLimits())
    model.submit(ModelRequest("a", prompt_tokens=1_000, output_tokens=301), 0.0)
    events = until_idle(model)
    [first], [last] = of_type(FirstToken, events), of_type(Finished, events)
    by_hand_ms = sum(
        profile.step_ms(decoding=1, context_tokens=1_001 + token) for token in range(300)
    )
    assert (last.at_s - first.at_s) * 1e3 == pytest.approx(by_hand_ms)


def test_decodes_go_first_and_prompts_share_what_is_left_of_a_step():
    model = counting(seqs_max=4, step_tokens_max=10)
    model.submit(ModelRequest("a", prompt_tokens=10, output_tokens=5), 0.0)
    model.submit(ModelRequest("b", prompt_tokens=13, output_tokens=2), 0.0)
    model.submit(ModelRequest("c", prompt_tokens=3, output_tokens=1), 0.0)
    assert steps(until_idle(model)) == [
        (10, ("a",)),  # a's prompt fills the first step
        (20, ("a",)),  # 1 of a, 9 of b
        (28, ("a", "b", "c")),  # 1 of a, 4 of b, 3 of c
        (30, ("a", "b")),
        (31, ("a",)),
    ]


def test_a_step_never_holds_more_tokens_than_its_budget():
    model = counting(seqs_max=8, step_tokens_max=32)
    for number in range(20):
        model.submit(ModelRequest(str(number), 7 + 13 * number, 9), 0.001 * number)
    ends = [0.0, *(at_ms for at_ms, _ in steps(until_idle(model)))]
    lengths = [round(b - a, 6) for a, b in pairwise(ends)]
    assert max(lengths) == 32
    assert sum(lengths) == sum(7 + 13 * number + 8 for number in range(20))


def test_an_arrival_waits_for_the_end_of_the_step_in_progress():
    model = counting(step_tokens_max=100, seqs_max=4)
    model.submit(ModelRequest("a", prompt_tokens=50, output_tokens=2), 0.0)
    model.submit(ModelRequest("b", prompt_tokens=5, output_tokens=1), 0.001)
    assert model.gauges().waiting == 1
    assert steps(until_idle(model)) == [(50, ("a",)), (56, ("a", "b"))]


def test_arrivals_at_one_instant_share_a_step_whether_or_not_somebody_looks_between_them():
    for look in (False, True):
        model = counting(step_tokens_max=100, seqs_max=4)
        model.submit(ModelRequest("a", prompt_tokens=5, output_tokens=1), 1.0)
        events = model.advance(1.0) if look else []
        model.submit(ModelRequest("b", prompt_tokens=5, output_tokens=1), 1.0)
        assert steps(events + until_idle(model)) == [(1_010, ("a", "b"))]


def test_an_arrival_in_a_decode_run_joins_at_the_next_step():
    model = counting()
    model.submit(ModelRequest("a", prompt_tokens=4, output_tokens=1_000), 0.0)
    model.advance(0.1)
    assert model.next_event_at() == pytest.approx(1.003)
    model.submit(ModelRequest("b", prompt_tokens=4, output_tokens=1), 0.1005)
    [admitted] = of_type(Admitted, model.advance(0.102))
    assert admitted.at_s == pytest.approx(0.101)
    assert of_type(FirstToken, until_idle(model))[0].at_s == pytest.approx(0.106)


def test_a_run_of_decode_steps_is_one_event_with_one_token_for_each_in_every_step():
    model = counting(seqs_max=64, kv_pages=64 * 63)
    for number in range(64):
        model.submit(ModelRequest(str(number), 1, 1_001), 0.0)
    model.advance(0.064)
    at_s = model.next_event_at()
    assert at_s == pytest.approx(0.064 + 64.0)
    [run, *finished] = model.advance(64.1)
    assert isinstance(run, StepEnded)
    assert (run.steps, run.step, len(run.request_ids)) == (1_000, 1_001, 64)
    assert [type(event) for event in finished] == [Finished] * 64


def test_a_partial_look_into_a_run_counts_the_steps_that_have_ended():
    model = counting()
    model.submit(ModelRequest("a", prompt_tokens=1, output_tokens=100), 0.0)
    model.advance(0.001)
    [run] = model.advance(0.0509)
    assert isinstance(run, StepEnded)
    assert (run.steps, run.step) == (49, 50)
    assert run.at_s == pytest.approx(0.050)
    assert model.next_step_at() == pytest.approx(0.051)


# Prefix cache


def test_a_known_prefix_is_not_computed_again():
    model = counting()
    prompt = ModelRequest("a", 70, 1, page_hashes=(1, 2, 3, 4))
    model.submit(prompt, 0.0)
    until_idle(model)
    assert model.matching_tokens((1, 2, 9)) == 32
    model.submit(replace(prompt, request_id="b"), 1.0)
    events = until_idle(model)
    assert of_type(Admitted, events) == [Admitted("b", 1.0, 64)]
    assert steps(events) == [(1_006, ("b",))]
    assert model.predicted_prefill_ms(70, 64) == pytest.approx(6.0)
    assert (model.gauges().hit_tokens, model.gauges().prompt_tokens) == (64, 140)


def test_the_last_page_of_a_fully_known_prompt_is_computed_again_to_sample_from():
    model = counting()
    for at_s, name in enumerate("ab"):
        model.submit(ModelRequest(name, 64, 1, page_hashes=(1, 2, 3, 4)), float(at_s))
        events = until_idle(model)
    assert of_type(Admitted, events) == [Admitted("b", 1.0, 48)]
    assert model.gauges().kv_pages_cached == 4


def test_a_page_can_be_found_as_soon_as_its_chunk_is_computed():
    model = counting(step_tokens_max=32, seqs_max=4)
    model.submit(ModelRequest("a", 64, 40, page_hashes=(1, 2, 3, 4)), 0.0)
    events = model.advance(0.040)
    assert of_type(PagesStored, events) == [PagesStored(near(0.032), (1, 2), 0)]
    model.submit(ModelRequest("b", 40, 1, page_hashes=(1, 2)), 0.040)
    events = model.advance(0.100)
    assert of_type(PagesStored, events) == [PagesStored(near(0.064), (3, 4), 2)]
    assert of_type(Admitted, events) == [Admitted("b", near(0.064), 32)]
    # b holds the two pages with a, and one of its own for the last eight tokens.
    assert model.gauges().kv_pages_used == 4 + 1 + 0 + 1


def test_two_that_compute_the_same_page_at_once_end_up_with_one():
    model = counting(step_tokens_max=100, seqs_max=4)
    for name in "ab":
        model.submit(ModelRequest(name, 33, 20, page_hashes=(1, 2)), 0.0)
    events = model.advance(0.066)
    assert of_type(PagesStored, events) == [PagesStored(near(0.066), (1, 2), 0)]
    # Two shared pages; each has the page of the 33rd token for itself.
    assert model.gauges().kv_pages_used == 4


def test_the_tail_of_the_oldest_prompt_is_forgotten_first():
    model = counting(kv_pages=8)
    model.submit(ModelRequest("a", 48, 1, page_hashes=(1, 2, 3)), 0.0)
    until_idle(model)
    model.submit(ModelRequest("b", 48, 1, page_hashes=(11, 12, 13)), 1.0)
    until_idle(model)
    model.submit(ModelRequest("c", 64, 1), 2.0)
    assert of_type(PagesRemoved, until_idle(model)) == [PagesRemoved(2.0, (3, 2))]
    assert model.matching_tokens((1, 2, 3)) == 16
    assert model.matching_tokens((11, 12, 13)) == 48


def test_pages_in_use_are_never_forgotten():
    model = counting(kv_pages=6)
    model.submit(ModelRequest("a", 48, 40, page_hashes=(1, 2, 3)), 0.0)
    model.advance(0.050)
    model.submit(ModelRequest("b", 40, 1), 0.050)  # three pages of the two that are left
    events = until_idle(model)
    [finished, later] = of_type(Finished, events)
    assert finished.request_id == "a"
    assert of_type(Admitted, events) == [Admitted("b", finished.at_s, 0)]
    assert later.request_id == "b"


def test_a_page_is_taken_and_another_forgotten_when_the_step_begins_that_needs_it():
    model = counting(kv_pages=3)
    model.submit(ModelRequest("a", 32, 1, page_hashes=(1, 2)), 0.0)
    until_idle(model)
    model.submit(ModelRequest("b", 15, 20), 1.0)
    model.advance(1.015)
    assert model.next_event_at() == pytest.approx(1.034)
    # The first decode step of b has filled its page, the second one begins with a new one, ...
    model.advance(1.016)
    assert (model.gauges().kv_pages_used, model.gauges().kv_pages_cached) == (2, 1)
    # ... and the one that begins 16 steps later with a third, which the head of a had.
    assert of_type(PagesRemoved, model.advance(1.0319)) == []
    assert of_type(PagesRemoved, model.advance(1.032)) == [PagesRemoved(near(1.032), (1,))]
    assert (model.gauges().kv_pages_used, model.gauges().kv_pages_cached) == (3, 0)


def test_output_pages_named_by_the_caller_are_found_by_the_next_turn():
    model = counting()
    model.submit(ModelRequest("turn 1", 20, 30, page_hashes=(1,)), 0.0)
    model.advance(0.040)
    model.add_page_hashes("turn 1", (2, 3))
    until_idle(model)
    # 20 + 30 tokens, the KV of the last one is not computed: three full pages.
    assert model.matching_tokens((1, 2, 3)) == 48
    with pytest.raises(ValueError, match="full pages"):
        model.submit(ModelRequest("turn 2", 20, 30, page_hashes=(1, 2)), 1.0)


def test_more_output_pages_than_the_request_can_fill_are_refused():
    model = counting()
    model.submit(ModelRequest("a", 20, 12, page_hashes=(1,)), 0.0)
    model.add_page_hashes("a", (2,))
    with pytest.raises(ValueError, match="more page hashes"):
        model.add_page_hashes("a", (3,))
    model.add_page_hashes("nobody", (3,))


# Preemption


def test_the_newest_loses_its_pages_and_is_computed_again():
    model = counting(kv_pages=4, step_tokens_max=100, seqs_max=4)
    model.submit(ModelRequest("old", prompt_tokens=16, output_tokens=30), 0.0)
    model.submit(ModelRequest("new", prompt_tokens=16, output_tokens=30), 0.0)
    events = until_idle(model)
    # Both have two pages until their 33rd token, then only one can go on.
    assert of_type(Preempted, events) == [Preempted("new", near(0.032 + 16 * 0.002))]
    again = of_type(Admitted, events)[2]
    ended = {event.request_id: event for event in of_type(Finished, events)}
    assert again == Admitted("new", ended["old"].at_s, 0)
    # It had 17 tokens: 16 + 17 are computed, the 18th comes with them, 12 more follow.
    assert ended["new"].at_s == pytest.approx(again.at_s + 0.033 + 12 * 0.001)
    assert [event.request_id for event in of_type(FirstToken, events)] == ["old", "new"]
    assert {event.output_tokens for event in ended.values()} == {30}
    assert model.gauges().preemptions == 1


def test_a_preempted_request_finds_what_is_left_of_its_prompt():
    model = counting(kv_pages=6, step_tokens_max=100, seqs_max=4)
    model.submit(ModelRequest("old", 32, 33), 0.0)
    model.submit(ModelRequest("new", 48, 17, page_hashes=(1, 2, 3)), 0.0)
    events = until_idle(model)
    [preempted] = of_type(Preempted, events)
    assert preempted.request_id == "new"
    # One of its three pages went to the older one; the head of the prompt is still there.
    assert of_type(PagesRemoved, events)[0].hashes == (3,)
    assert of_type(Admitted, events)[2].hit_tokens == 32


def test_the_preempted_goes_before_those_who_wait_and_all_it_has_is_to_be_computed():
    model = counting(kv_pages=4, step_tokens_max=100, seqs_max=3)
    for name in ("old", "new"):
        model.submit(ModelRequest(name, 16, 30), 0.0)
    model.submit(ModelRequest("next", 16, 1), 0.040)
    events = model.advance(0.0645)
    assert of_type(Preempted, events) == [Preempted("new", near(0.064))]
    assert model.gauges().queued_tokens == (16 + 17) + 16
    admitted = of_type(Admitted, until_idle(model))
    assert [event.request_id for event in admitted] == ["new", "next"]


def test_what_was_decoding_from_foreign_kv_is_computed_here_after_a_preemption():
    model = counting(kv_pages=4, step_tokens_max=100, seqs_max=4)
    model.submit(ModelRequest("old", 16, 30, kind="decode"), 0.0)
    model.submit(ModelRequest("new", 16, 30, kind="decode"), 0.0)
    events = until_idle(model)
    [preempted] = of_type(Preempted, events)
    assert preempted == Preempted("new", near(17 * 0.002))
    ended = {event.request_id: event.at_s for event in of_type(Finished, events)}
    # After 17 tokens each: 13 steps of the old one alone; then 33 tokens computed, 12 steps.
    assert ended["old"] == pytest.approx(0.034 + 0.013)
    assert ended["new"] == pytest.approx(ended["old"] + 0.033 + 0.012)


# The two phases


def test_a_prefill_keeps_its_pages_until_they_are_released():
    model = counting()
    model.submit(ModelRequest("p", 100, kind="prefill", page_hashes=(1, 2)), 0.0)
    events = until_idle(model)
    assert events[-1] == PrefillFinished("p", near(0.100))
    assert steps(events) == [(100, ())]
    gauges = model.gauges()
    assert (gauges.running, gauges.pinned, gauges.kv_pages_used) == (0, 1, 7)
    for _ in range(2):
        model.release("p", 1.0)
        gauges = model.gauges()
        assert (gauges.pinned, gauges.kv_pages_used, gauges.kv_pages_cached) == (0, 0, 2)


def test_release_ends_nothing_but_finished_prefills():
    model = counting()
    model.submit(ModelRequest("p", 100, kind="prefill"), 0.0)
    model.submit(ModelRequest("a", 100, 2), 0.0)
    for name in ("p", "a", "nobody"):
        model.release(name, 0.05)
    assert {type(event) for event in until_idle(model)} >= {PrefillFinished, Finished}


def test_pinned_pages_keep_others_out_until_their_release():
    model = counting(kv_pages=8)
    model.submit(ModelRequest("p", 100, kind="prefill"), 0.0)
    model.submit(ModelRequest("a", 32, 1), 0.0)
    until_idle(model)
    assert model.gauges().waiting == 1
    assert model.next_event_at() is None
    model.release("p", 2.0)
    assert model.advance(2.0) == [Admitted("a", 2.0, 0)]


def test_a_decode_has_its_first_token_after_one_step_without_prefill():
    profile = replace(COUNTING, dc_ms_per_token=1.0)
    model = EngineModel(profile, EngineLimits())
    model.submit(ModelRequest("d", 100, 3, kind="decode"), 0.0)
    assert model.gauges().kv_pages_used == 7
    assert model.gauges().queued_tokens == 0
    # It computes the 100th token again, so that its step reads 100 tokens, then 101, 102.
    assert steps(until_idle(model)) == [(101, ("d",)), (203, ("d",)), (306, ("d",))]


def test_a_decode_waits_for_pages_like_everybody_else():
    model = counting(kv_pages=4)
    model.submit(ModelRequest("a", 40, 20), 0.0)
    model.submit(ModelRequest("d", 33, 1, kind="decode"), 0.0)
    events = until_idle(model)
    assert of_type(Admitted, events)[1].at_s == of_type(Finished, events)[0].at_s


def test_foreign_kv_enters_the_prefix_cache():
    model = counting()
    model.submit(ModelRequest("d", 64, 1, page_hashes=(1, 2, 3, 4), kind="decode"), 0.0)
    assert of_type(PagesStored, model.advance(0.0)) == [PagesStored(0.0, (1, 2, 3, 4), 0)]


# Ending early


def test_a_finished_sequence_makes_room_at_the_very_step_end():
    model = counting(seqs_max=1)
    model.submit(ModelRequest("a", 10, 50), 0.0)
    model.submit(ModelRequest("b", 10, 1), 0.0)
    step_at = 0.0
    for _ in range(3):
        step_at = model.next_step_at() or step_at
        model.advance(step_at)
    model.finish("a", step_at)
    assert model.advance(step_at) == [Admitted("b", step_at, 0)]
    assert steps(until_idle(model)) == [(22, ("b",))]


def test_a_cancelled_request_is_gone_at_once_but_its_step_takes_its_time():
    model = counting(step_tokens_max=100, seqs_max=2)
    model.submit(ModelRequest("a", 60, 5), 0.0)
    model.submit(ModelRequest("b", 40, 5), 0.0)
    model.submit(ModelRequest("c", 7, 5), 0.0)
    model.cancel("a", 0.010)
    model.cancel("c", 0.020)
    gauges = model.gauges()
    assert (gauges.running, gauges.waiting, gauges.kv_pages_used) == (1, 0, 3)
    assert steps(until_idle(model))[0] == (100, ("b",))


def test_a_cancel_in_a_decode_run_shortens_the_steps_after_the_present_one():
    model = counting(seqs_max=2)
    for name in "ab":
        model.submit(ModelRequest(name, 8, 50), 0.0)
    model.advance(0.020)
    model.cancel("a", 0.0205)
    assert steps(until_idle(model))[:3] == [(22, ("b",)), (23, ("b",)), (24, ("b",))]


def test_a_decode_cancelled_in_its_first_step_has_no_first_token():
    model = counting()
    for name in ("gone", "stays"):
        model.submit(ModelRequest(name, 100, 3, kind="decode"), 0.0)
    model.cancel("gone", 0.001)
    assert of_type(FirstToken, until_idle(model)) == [FirstToken("stays", near(0.002))]


@pytest.mark.parametrize("end", ["finish", "cancel"])
def test_ending_twice_or_ending_nobody_changes_nothing(end: str):
    model = counting()
    model.submit(ModelRequest("a", 8, 5), 0.0)
    for name in ("a", "a", "nobody"):
        getattr(model, end)(name, 0.001)
    events = until_idle(model)
    assert steps(events) == [(8, ())]
    assert not of_type(Finished, events)
    assert model.gauges().kv_pages_used == 0


def test_a_cancelled_prefill_frees_its_pinned_pages():
    model = counting()
    model.submit(ModelRequest("p", 100, kind="prefill"), 0.0)
    until_idle(model)
    model.cancel("p", 1.0)
    assert (model.gauges().pinned, model.gauges().kv_pages_used) == (0, 0)


# Refusals and limits


def test_a_full_queue_refuses_and_keeps_what_it_has():
    model = counting(seqs_max=1, waiting_max=2)
    for name in "abc":
        model.submit(ModelRequest(name, 10, 1), 0.0)
    with pytest.raises(WaitingQueueFull):
        model.submit(ModelRequest("d", 10, 1), 0.0)
    assert [event.request_id for event in of_type(Finished, until_idle(model))] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("request_", "fits"),
    [
        (ModelRequest("a", 64, 1), True),
        (ModelRequest("a", 60, 5), True),  # the KV of the last token is never computed
        (ModelRequest("a", 60, 6), False),
        (ModelRequest("a", 65, 1), False),
        (ModelRequest("a", 64, 9, kind="prefill"), True),
        (ModelRequest("a", 60, 6, kind="decode"), False),
    ],
)
def test_what_can_never_fit_is_refused(request_: ModelRequest, fits: bool):
    model = counting(kv_pages=4)
    if fits:
        model.submit(request_, 0.0)
        until_idle(model)
        assert model.gauges().waiting == model.gauges().preemptions == 0
    else:
        with pytest.raises(RequestTooLarge, match="5 pages of 4"):
            model.submit(request_, 0.0)
        assert model.gauges().waiting == 0


def test_an_id_can_be_used_again_only_when_its_request_has_ended():
    model = counting(seqs_max=1)
    for name, kind in (("run", "aggregated"), ("wait", "prefill")):
        model.submit(ModelRequest(name, 10, 1, kind=kind), 0.0)  # type: ignore[arg-type]
    for name in ("run", "wait"):
        with pytest.raises(DuplicateRequest):
            model.submit(ModelRequest(name, 10, 1), 0.0)
    until_idle(model)
    with pytest.raises(DuplicateRequest):
        model.submit(ModelRequest("wait", 10, 1), 1.0)
    model.submit(ModelRequest("run", 10, 1), 1.0)


def test_every_refusal_is_an_engine_model_error():
    for refusal in (WaitingQueueFull, RequestTooLarge, DuplicateRequest):
        assert issubclass(refusal, EngineModelError)


def test_seats_bound_who_runs():
    model = counting(seqs_max=3)
    for number in range(7):
        model.submit(ModelRequest(str(number), 5, 10), 0.0)
    gauges = model.gauges()
    assert (gauges.running, gauges.waiting, gauges.queued_tokens) == (3, 4, 35)


def test_prompts_in_progress_can_be_bounded():
    model = counting(prefills_max=1, step_tokens_max=100, seqs_max=4)
    for number in range(3):
        model.submit(ModelRequest(str(number), 5, 1), 0.0)
    assert steps(until_idle(model)) == [(5, ("0",)), (10, ("1",)), (15, ("2",))]


@pytest.mark.parametrize(
    "limits",
    [
        {"seqs_max": 0},
        {"kv_pages": 0},
        {"waiting_max": 0},
        {"zero_time_steps_max": 0},
        {"seqs_max": 64, "step_tokens_max": 63},
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, int]):
    with pytest.raises(ValueError, match=r"limit|step_tokens_max"):
        EngineLimits(**limits)


@pytest.mark.parametrize(
    ("prompt", "output", "hashes", "kind"),
    [(0, 1, (), "aggregated"), (5, 0, (), "decode"), (31, 1, (1, 2), "prefill")],
)
def test_impossible_requests_are_refused(prompt: int, output: int, hashes, kind):
    with pytest.raises(ValueError, match=r"prompt|output"):
        ModelRequest("a", prompt, output, hashes, kind)


def test_the_room_for_kv_comes_from_the_profile_unless_it_is_given():
    profile = profile_named("llama3-8b/tp1/h100")
    assert EngineModel(profile, EngineLimits()).gauges().kv_pages_total == 25_000
    assert EngineModel(profile, EngineLimits(kv_pages=9)).gauges().kv_pages_total == 9


# Time and load


def test_speed_divides_every_time():
    times_s = []
    for speed in (1.0, 4.0):
        model = EngineModel(profile_named("llama3-8b/tp1/h100"), EngineLimits(), speed=speed)
        model.submit(ModelRequest("a", 3_000, 200), 0.0)
        predicted = model.predicted_backlog_ms(0.0), model.predicted_prefill_ms(500)
        [finished] = of_type(Finished, until_idle(model))
        times_s.append([finished.at_s, model.gauges().busy_s, *predicted])
    assert times_s[0] == pytest.approx([4 * time_s for time_s in times_s[1]])


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_speed_is_refused(speed: float):
    with pytest.raises(ValueError, match="speed"):
        EngineModel(COUNTING, EngineLimits(), speed=speed)


def test_a_time_before_the_last_call_counts_as_the_last_call():
    model = counting()
    model.advance(5.0)
    model.submit(ModelRequest("a", 10, 1), 4.0)
    assert steps(until_idle(model)) == [(5_010, ("a",))]


def test_busy_time_is_the_time_in_steps():
    model = counting()
    model.submit(ModelRequest("a", 10, 11), 0.0)
    model.advance(0.0152)
    assert model.gauges().busy_s == pytest.approx(0.015)
    model.submit(ModelRequest("b", 20, 1), 7.0)
    until_idle(model)
    assert model.gauges().busy_s == pytest.approx(0.040)


def test_the_gauges_tell_what_is_there():
    model = counting(step_tokens_max=50, seqs_max=4)
    model.submit(ModelRequest("a", 10, 20), 0.0)
    model.submit(ModelRequest("b", 100, 5), 0.0)
    model.advance(0.050)  # the 10 of a and 40 of b
    gauges = model.gauges()
    assert (gauges.running, gauges.queued_tokens, gauges.context_tokens) == (2, 60, 11)
    assert gauges.kv_pages_used == 1 + 7
    assert (gauges.steps, gauges.output_tokens) == (1, 1)


def test_the_predicted_backlog_is_the_time_the_queue_takes():
    model = EngineModel(profile_named("llama3-8b/tp1/h100"), EngineLimits())
    for number in range(12):
        model.submit(ModelRequest(str(number), 1_500 + 300 * number, 1), 0.0)
    predicted_s = model.predicted_backlog_ms(0.0) / 1e3
    assert predicted_s == pytest.approx(of_type(FirstToken, until_idle(model))[-1].at_s, rel=0.05)


def test_the_predicted_backlog_shrinks_as_time_passes():
    model = EngineModel(profile_named("llama3-8b/tp1/h100"), EngineLimits())
    for number in range(5):
        model.submit(ModelRequest(str(number), 2_048, 1), 0.0)
    predictions_ms = [model.predicted_backlog_ms(0.010 * look) for look in range(30)]
    assert predictions_ms == sorted(predictions_ms, reverse=True)
    assert predictions_ms[1] == pytest.approx(predictions_ms[0] - 10.0, abs=0.01)
    assert predictions_ms[-1] == 0.0


def test_a_decode_step_is_predicted_from_the_present_batch():
    model = counting()
    assert model.predicted_step_ms() == 0.0
    for number in range(5):
        model.submit(ModelRequest(str(number), 8, 50), 0.0)
    model.advance(0.045)
    assert model.predicted_step_ms() == pytest.approx(5.0)
