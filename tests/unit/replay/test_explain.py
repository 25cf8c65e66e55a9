"""Why a request went where it went, from its steps alone."""

from typing import Any

from components.replay.explain import explained
from schemas.codes import RequestStep
from schemas.past import ExplainRequestReply
from schemas.request import RequestEvent

ROUTED: dict[str, Any] = {
    "policy": "least_loaded",
    "chosen": ["p1", "d0"],
    "candidates": ["p0", "p1", "d0", "d1"],
    "prefill_candidates": 2,
    "loads": [3, 1, 2, 5],
    "rooms": [13, 15, 30, 27],
    "queued_tokens": [900, 100, 0, 0],
    "free_pages": [10, 20, 30, 40],
    "state_seqs": [7, 8, 9, 10],
    "state_ages_ms": [12, 4, 30, 31],
    "costs_ms": [40.0, 12.5, 9.5, 11.0],
}


def step(name: RequestStep, at_ms: int, attempt: int = 1, **detail: Any) -> RequestEvent:
    return RequestEvent(
        request_id="r", step=name, attempt=attempt, at_ms=at_ms, seq=1, detail=detail
    )


def story(*more: RequestEvent, tenant: str | None = None) -> ExplainRequestReply:
    steps = [
        ("gateway-0", step("accepted", 100, model="m", tenant="t", prompt_tokens=9)),
        ("scheduler-0", step("scheduled", 104, queue_ms=3.5)),
        ("router-0", step("routed", 105, **ROUTED)),
        ("router-0", step("dispatched", 105, worker="d0")),
        ("d0", step("handed_over", 120, ms=2.0)),
        ("gateway-0", step("first_token", 125, ttft_ms=25.25)),
        ("gateway-0", step("finished", 225, completion_tokens=32, e2e_ms=125.5)),
    ]
    return explained("r", [*steps, *(("gateway-0", e) for e in more)], tenant)


def test_every_candidate_stands_with_its_terms_and_the_state_it_was_judged_on():
    prefill, decode = story().choices
    assert (prefill.what, decode.what, prefill.policy) == ("prefill", "decode", "least_loaded")
    assert [c.worker for c in prefill.candidates] == ["p0", "p1"]
    chosen = prefill.candidates[1]
    assert chosen.chosen
    assert chosen.terms == {"load": 1, "room": 15, "queued_tokens": 100, "free_pages": 20}
    assert (chosen.state_seq, chosen.state_age_ms, chosen.cost_ms) == (8, 4, 12.5)


def test_the_best_alternative_has_its_price():
    prefill, decode = story().choices
    assert (prefill.best_alternative, prefill.saved_ms) == ("p0", 27.5)
    assert (decode.best_alternative, decode.saved_ms) == ("d1", 1.5)


def test_a_choice_without_an_alternative_saved_nothing():
    alone: dict[str, Any] = {"policy": "x", "chosen": ["a"], "candidates": ["a"], "costs_ms": [4.0]}
    found = explained("r", [("router-0", step("routed", 1, **alone))], None)
    assert (found.choices[0].what, found.choices[0].saved_ms) == ("aggregated", None)


def test_time_is_accounted_for_by_the_clock_that_measured_it():
    phases = story().phases_ms
    assert phases["queued"] == 3.5
    assert phases["handoff"] == 2.0
    assert phases["ttft"] == 25.25
    assert phases["total"] == 125.5
    assert phases["decode"] == 100.0
    assert phases["prefill"] == 15.0


def test_what_it_came_to_and_how_often_it_was_tried():
    found = story(step("interrupted", 130, attempt=1), step("routed", 131, attempt=2, **ROUTED))
    assert (found.outcome, found.attempts, found.output_tokens) == ("finished", 2, 32)
    assert [c.attempt for c in found.choices] == [1, 1, 2, 2]


def test_a_request_that_runs_has_no_end():
    found = explained("r", [("gateway-0", step("accepted", 1))], None)
    assert (found.found, found.outcome) == (True, "running")


def test_a_request_of_another_tenant_is_as_if_it_were_not_there():
    assert story(tenant="t").found
    assert story(tenant="u") == ExplainRequestReply(request_id="r", found=False)
    assert explained("x", [], None).found is False


def test_steps_that_the_history_lost_are_named():
    found = explained("r", [("gateway-0", step("finished", 1, e2e_ms=1.0))], None)
    assert found.notes == ("the history does not hold: accepted, scheduled, routed, dispatched",)
