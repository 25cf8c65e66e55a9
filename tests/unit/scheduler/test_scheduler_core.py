"""The scheduler's decisions: a situation written down, and what comes out."""

from typing import TypeVar

import pytest

from components.domain.outcomes import Ask, Outcome, Record, Send
from components.scheduler.core import SchedulerCore
from components.scheduler.settings import SchedulerSettings
from schemas.attempt import AttemptReported, CancelAttempt
from schemas.examples import CARD, HEARTBEAT, PLAN, example
from schemas.message import Message
from schemas.request import (
    CancelRequest,
    RequestDispatched,
    RequestQueued,
    RequestRefused,
    ScheduleRequest,
)
from schemas.routing import CardWaits, RoomChanged, RouteWindow, RouteWindowReply

M = TypeVar("M", bound=Message)
SHARD = CARD.model


def router_heartbeat(epoch: int = 1, owns: tuple[str, ...] = (SHARD,)) -> Message:
    return HEARTBEAT.model_copy(
        update={
            "component": "router",
            "instance": "router-0",
            "process_epoch": epoch,
            "owns": owns,
            "role": None,
        }
    )


def schedule(request_id: str = "a", **changes: object) -> ScheduleRequest:
    return ScheduleRequest(card=CARD.model_copy(update={"request_id": request_id, **changes}))


def a_scheduler(**settings: object) -> SchedulerCore:
    core = SchedulerCore("scheduler-0", SchedulerSettings.model_validate(settings))
    core.on_message(router_heartbeat(), 0.0)
    return core


def sent(outcomes: list[Outcome], kind: type[M]) -> list[M]:
    return [o.message for o in outcomes if isinstance(o, Send) and isinstance(o.message, kind)]


def windows(outcomes: list[Outcome]) -> list[RouteWindow]:
    return [
        o.message for o in outcomes if isinstance(o, Ask) and isinstance(o.message, RouteWindow)
    ]


def reply_to(window: RouteWindow, placed: int | None = None) -> RouteWindowReply:
    cut = len(window.cards) if placed is None else placed
    return RouteWindowReply(
        shard=window.shard,
        window=window.window,
        router="router-0",
        router_epoch=1,
        plans=tuple(
            PLAN.model_copy(update={"request_id": c.request_id, "attempt": c.attempt})
            for c in window.cards[:cut]
        ),
        waits=tuple(
            CardWaits(request_id=c.request_id, reason="no_decode_room") for c in window.cards[cut:]
        ),
    )


def report(request_id: str, attempt: int = 1, **changes: object) -> AttemptReported:
    base = example(AttemptReported)
    return base.model_copy(update={"request_id": request_id, "attempt": attempt, **changes})


def test_a_fresh_request_is_queued_and_shown_to_the_owner_of_its_shard() -> None:
    outcomes = a_scheduler().on_message(schedule("a"), 1.0)
    assert [q.place for q in sent(outcomes, RequestQueued)] == [0]
    (window,) = windows(outcomes)
    assert [c.request_id for c in window.cards] == ["a"]
    assert [o.to for o in outcomes if isinstance(o, Ask)] == [(SHARD, "router-0")]
    assert [o.step for o in outcomes if isinstance(o, Record)] == ["scheduled"]


def test_without_a_router_requests_wait_and_are_shown_when_one_comes() -> None:
    core = SchedulerCore("scheduler-0", SchedulerSettings())
    assert windows(core.on_message(schedule("a"), 1.0)) == []
    (window,) = windows(core.on_message(router_heartbeat(), 2.0))
    assert [c.request_id for c in window.cards] == ["a"]


def test_one_window_is_out_at_a_time_and_the_next_keeps_the_order() -> None:
    core = a_scheduler()
    (first,) = windows(core.on_message(schedule("a"), 1.0))
    for name in ("b", "c"):
        assert windows(core.on_message(schedule(name), 1.0)) == []
    (second,) = windows(core.on_message(reply_to(first), 1.1))
    assert [c.request_id for c in second.cards] == ["b", "c"]


def test_what_found_no_room_is_shown_again_when_room_changed() -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    assert windows(core.on_message(reply_to(window, placed=0), 1.0)) == []
    assert windows(core.on_tick(1.1)) == []
    (again,) = windows(core.on_message(example(RoomChanged, shard=SHARD), 1.15))
    assert [(c.request_id, c.attempt) for c in again.cards] == [("a", 1)]


def test_what_found_no_room_is_shown_again_after_a_while_without_any_signal() -> None:
    core = a_scheduler(window_retry_s=0.25)
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(reply_to(window, placed=0), 1.0)
    assert windows(core.on_tick(1.2)) == []
    assert len(windows(core.on_tick(1.26))) == 1


def test_the_budget_that_the_router_sees_shrinks_while_a_request_waits() -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a", budget_ms=5000), 1.0))
    core.on_message(reply_to(window, placed=0), 1.0)
    (again,) = windows(core.on_message(router_heartbeat(), 3.0))
    assert again.cards[0].budget_ms == 3000


def test_the_same_request_again_changes_nothing_and_is_told_where_it_stands() -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    assert len(sent(core.on_message(schedule("a"), 1.0), RequestQueued)) == 1
    core.on_message(reply_to(window), 1.1)
    (dispatched,) = sent(core.on_message(schedule("a"), 1.2), RequestDispatched)
    assert (dispatched.worker, dispatched.attempt) == (PLAN.worker, 1)
    assert len(core.requests) == 1


def test_a_late_copy_of_an_ended_request_does_not_run_it_again() -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(reply_to(window), 1.1)
    core.on_message(report("a", state="ended", finish="stop"), 2.0)
    outcomes = core.on_message(schedule("a"), 2.1)
    assert sent(outcomes, RequestQueued) == []
    assert windows(outcomes) == []


def test_a_continuation_fences_the_old_attempt_and_passes_what_is_fresh() -> None:
    core = a_scheduler(window_cards_max=1)
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(reply_to(window), 1.1)
    (blocker,) = windows(core.on_message(schedule("b"), 1.2))
    core.on_message(schedule("c"), 1.2)
    outcomes = core.on_message(schedule("a", attempt=2, emitted_tokens=7), 1.3)
    assert {c.attempt for c in sent(outcomes, CancelAttempt)} == {1}
    (following,) = windows(core.on_message(reply_to(blocker), 1.4))
    assert [(c.request_id, c.attempt, c.emitted_tokens) for c in following.cards] == [("a", 2, 7)]


def test_an_unanswered_window_is_shown_again_under_higher_attempts() -> None:
    core = a_scheduler(window_timeout_s=2.0)
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(router_heartbeat(), 2.9)
    (again,) = windows(core.on_tick(3.1))
    assert [(c.request_id, c.attempt) for c in again.cards] == [("a", 2)]
    late = core.on_message(reply_to(window), 3.2)
    assert {(c.request_id, c.attempt) for c in sent(late, CancelAttempt)} == {("a", 1)}


def test_a_restarted_router_gets_the_open_window_again_at_once() -> None:
    core = a_scheduler()
    core.on_message(schedule("a"), 1.0)
    (again,) = windows(core.on_message(router_heartbeat(epoch=2), 1.3))
    assert [(c.request_id, c.attempt) for c in again.cards] == [("a", 2)]


@pytest.mark.parametrize("nack", ["full", "stale_epoch", "duplicate", "draining"])
def test_a_refused_attempt_is_queued_again_by_ourselves(nack: str) -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(reply_to(window), 1.1)
    outcomes = core.on_message(report("a", state="refused", nack=nack), 1.2)
    (again,) = windows(outcomes)
    assert [(c.request_id, c.attempt) for c in again.cards] == [("a", 2)]
    # The other half of the pair must not go on.
    assert {o.to for o in outcomes if isinstance(o, Send)} == {("decode-0",), ("prefill-0",)}


@pytest.mark.parametrize(
    ("nack", "code"),
    [
        ("too_long", "prompt_too_long"),
        ("body_unavailable", "body_unavailable"),
        ("unsupported", "engine_error"),
    ],
)
def test_what_no_engine_can_do_is_refused_with_its_code(nack: str, code: str) -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(reply_to(window), 1.1)
    outcomes = core.on_message(report("a", state="refused", nack=nack), 1.2)
    assert [r.code for r in sent(outcomes, RequestRefused)] == [code]
    assert core.requests == {}


def test_the_queue_is_bounded() -> None:
    core = SchedulerCore("scheduler-0", SchedulerSettings(queue_requests_max=2))
    for name in ("a", "b"):
        core.on_message(schedule(name), 1.0)
    (refused,) = sent(core.on_message(schedule("c"), 1.0), RequestRefused)
    assert (refused.code, refused.retry_after_ms) == ("queue_full", 1000)


def test_a_request_that_waits_past_its_deadline_is_refused() -> None:
    core = SchedulerCore("scheduler-0", SchedulerSettings())
    core.on_message(schedule("a", budget_ms=500), 1.0)
    assert sent(core.on_tick(1.5), RequestRefused) == []
    assert [r.code for r in sent(core.on_tick(1.51), RequestRefused)] == ["deadline_exceeded"]


def test_attempts_are_bounded() -> None:
    core = a_scheduler(attempts_max=3)
    (refused,) = sent(core.on_message(schedule("a", attempt=4), 1.0), RequestRefused)
    assert refused.code == "too_many_attempts"


def test_a_cancelled_request_leaves_the_queue_and_its_workers() -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(schedule("b"), 1.0)
    core.on_message(reply_to(window), 1.1)
    outcomes = core.on_message(CancelRequest(request_id="a"), 1.2)
    assert {c.request_id for c in sent(outcomes, CancelAttempt)} == {"a"}
    core.on_message(CancelRequest(request_id="b"), 1.2)
    assert core.requests == {}
    assert len(core.shards[SHARD].queue) == 0


def test_a_plan_for_a_request_cancelled_meanwhile_is_cancelled_too() -> None:
    core = a_scheduler()
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(CancelRequest(request_id="a"), 1.05)
    outcomes = core.on_message(reply_to(window), 1.1)
    assert {(c.request_id, c.attempt) for c in sent(outcomes, CancelAttempt)} == {("a", 1)}


def test_what_a_restarted_gateway_had_queued_is_dropped_but_not_what_a_silent_one_had() -> None:
    gateway = HEARTBEAT.model_copy(
        update={"component": "gateway", "instance": "gateway-0", "process_epoch": 1}
    )
    core = SchedulerCore("scheduler-0", SchedulerSettings())
    core.on_message(gateway, 0.0)
    core.on_message(schedule("a"), 1.0)
    core.on_tick(10.0)
    assert set(core.requests) == {"a"}
    core.on_message(gateway, 10.5)
    core.on_message(gateway.model_copy(update={"process_epoch": 2}), 11.0)
    assert core.requests == {}


def test_silence_while_we_were_cut_off_costs_nobody_anything() -> None:
    core = a_scheduler()
    core.on_message(schedule("a"), 1.0)
    core.on_resume(60.0)
    assert core.peers.get("router-0") is not None


def test_nothing_is_left_when_all_is_over() -> None:
    core = a_scheduler(tombstone_s=60.0)
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(reply_to(window), 1.1)
    core.on_message(report("a", state="ended", finish="length"), 2.0)
    core.on_tick(70.0)
    assert (core.requests, core.tombstones) == ({}, {})


def test_a_placed_request_whose_worker_and_gateway_are_gone_is_forgotten() -> None:
    core = a_scheduler(orphan_after_s=30.0)
    core.on_message(HEARTBEAT, 0.9)
    (window,) = windows(core.on_message(schedule("a"), 1.0))
    core.on_message(reply_to(window), 1.1)
    core.on_tick(5.0)
    assert set(core.requests) == {"a"}
    core.on_tick(40.0)
    assert core.requests == {}
