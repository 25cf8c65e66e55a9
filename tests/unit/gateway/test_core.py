"""A request between its card and its last token: submission, fencing, continuation, time."""

from typing import Any

import pytest

from components.gateway.repair import POSITIONS_MAX
from schemas.attempt import CancelAttempt
from schemas.body import BodyPublished
from schemas.request import CancelRequest, ScheduleRequest
from tests.unit.gateway.yard import (
    END_ID,
    Yard,
    emitted_in,
    entry,
    finished_in,
    taken,
    text_of,
)


@pytest.fixture
def yard() -> Yard:
    return Yard().fleet()


# A quiet life.


def test_a_request_is_recorded_submitted_and_its_body_published(yard: Yard):
    request = yard.accept()
    assert yard.steps() == ["accepted"]
    [(schedule, to)] = yard.sent(ScheduleRequest)
    assert to == ("scheduler-0",)
    assert (schedule.card.attempt, schedule.card.emitted_tokens) == (1, 0)
    assert schedule.body == request.body
    [(published, _)] = yard.sent(BodyPublished)
    assert published.body == request.body


def test_tokens_reach_the_client_and_the_end_closes_everything(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).tokens(request, 1, 8, 9, finish="stop")
    assert taken(request) == text_of(7, 8, 9)
    assert yard.steps() == ["first_token", "finished"]
    assert (request.state, yard.core.requests) == ("done", {})
    assert [m.body for m, _ in yard.sent(BodyPublished)] == [b""]


def test_a_body_over_the_inline_limit_stays_here_until_a_worker_asks(yard: Yard):
    request = yard.accept(prompt=tuple(range(3000)))
    [schedule] = yard.scheduled()
    assert schedule.body is None
    assert schedule.card.body_bytes == len(request.body)


def test_an_ended_request_says_its_usage_and_attempts_in_its_last_step(yard: Yard):
    request = yard.running()
    yard.now_s += 0.5
    yard.tokens(request, 0, 7)
    yard.now_s += 0.5
    yard.frame("decode-0", entry("req-1", 1, 8, end=["stop", None, 32]))
    assert yard.detail("finished") == {
        "finish_reason": "stop",
        "prompt_tokens": 33,
        "completion_tokens": 2,
        "cached_tokens": 32,
        "e2e_ms": 1000.0,
        "attempts": 1,
        "interruptions": 0,
        "worker": "decode-0",
    }
    assert yard.detail("first_token") == {"ttft_ms": 500.0, "worker": "decode-0"}


# Submission.


def test_without_a_scheduler_a_request_waits_for_one():
    yard = Yard()
    yard.accept()
    assert yard.scheduled() == []
    yard.heartbeat("scheduler", "scheduler-0", state="starting")
    assert yard.scheduled() == []
    yard.heartbeat("scheduler", "scheduler-0", state="ready")
    assert len(yard.scheduled()) == 1


def test_a_submission_without_an_answer_is_made_again_after_a_second(yard: Yard):
    yard.accept()
    yard.forget().pass_s(0.9)
    assert yard.scheduled() == []
    yard.pass_s(0.2)
    assert [m.card.attempt for m in yard.scheduled()] == [1]


def test_a_queued_request_is_shown_again_only_now_and_then(yard: Yard):
    request = yard.accept()
    yard.queued(request).forget().pass_s(14.0, 0.5)
    assert yard.scheduled() == []
    yard.pass_s(1.0, 0.5)
    assert len(yard.scheduled()) == 1


def test_what_a_restarted_scheduler_had_queued_is_submitted_to_its_new_life(yard: Yard):
    waiting, running = yard.accept("req-1"), yard.running("req-2")
    yard.queued(waiting).forget()
    yard.heartbeat("scheduler", "scheduler-0", epoch=2)
    assert [m.card.request_id for m in yard.scheduled()] == ["req-1"]
    assert running.state == "dispatched"


def test_what_a_silent_scheduler_had_queued_goes_to_another(yard: Yard):
    yard.heartbeat("scheduler", "scheduler-1")
    requests = [yard.accept(f"req-{n}", model=f"model-{n}") for n in range(20)]
    for request in requests:
        yard.queued(request)
    with_first = [r.request_id for r in requests if r.scheduler == ("scheduler-0", 1)]
    assert 0 < len(with_first) < 20
    yard.forget().silence("scheduler-0").pass_s(2.5)
    moved = yard.sent(ScheduleRequest)
    assert sorted(m.card.request_id for m, _ in moved) == sorted(with_first)
    assert {to for _, to in moved} == {("scheduler-1",)}


def test_a_scheduler_that_joins_takes_nothing_from_one_that_lives(yard: Yard):
    for n in range(20):
        yard.queued(yard.accept(f"req-{n}", model=f"model-{n}"))
    yard.forget().heartbeat("scheduler", "scheduler-1")
    assert yard.scheduled() == []


def test_after_a_reconnect_everything_undispatched_is_submitted_and_every_stream_asked_for(
    yard: Yard,
):
    yard.queued(yard.accept("req-1"))
    yard.running("req-2")
    yard.forget().hear(yard.core.on_reconnect(yard.now_s))
    assert [m.card.request_id for m in yard.scheduled()] == ["req-1"]
    [ask] = yard.asked()
    assert [p.request_id for p in ask.message.positions] == ["req-2"]


def test_the_budget_shrinks_with_each_submission(yard: Yard):
    yard.accept(budget_ms=10_000)
    yard.pass_s(2.5)
    assert [m.card.budget_ms for m in yard.scheduled()] == [10_000, 9_000, 8_000]


def test_a_scheduler_that_never_answers_one_attempt_is_given_the_next_one(yard: Yard):
    """It ended that attempt (our stream's end was lost) and remembers the number."""
    yard.accept()
    yard.pass_s(6.5)
    assert [m.card.attempt for m in yard.scheduled()] == [1, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("code", ["queue_full", "prompt_too_long", "no_worker"])
def test_a_refusal_ends_the_request(yard: Yard, code):
    request = yard.accept()
    yard.refused(request, code, retry_after_ms=1000)
    [end] = yard.ends()
    assert (end.code, end.retry_after_ms) == (code, 1000)
    assert yard.steps() == ["accepted", "refused"]
    assert yard.core.requests == {}


def test_a_scheduler_that_shuts_down_costs_the_place_and_not_the_request(yard: Yard):
    request = yard.accept()
    yard.queued(request).refused(request, "shutting_down")
    assert yard.ends() == []
    yard.forget().heartbeat("scheduler", "scheduler-0", state="stopped")
    yard.heartbeat("scheduler", "scheduler-0", epoch=2)
    assert len(yard.scheduled()) == 1


def test_a_refusal_of_an_attempt_that_was_given_up_is_ignored(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).silence("decode-0").pass_s(2.5)
    yard.refused(request, "engine_error", attempt=1)
    assert yard.ends() == []


# Fencing.


def test_a_late_token_of_a_fenced_attempt_is_dropped_and_counted(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).silence("decode-0").pass_s(2.5)
    yard.dispatched(request, "decode-1", attempt=2).forget()
    yard.tokens(request, 1, 666, 667, attempt=1)
    assert yard.count("late_tokens_total") == 2
    yard.tokens(request, 1, 8, worker="decode-1", attempt=2)
    assert taken(request) == text_of(7, 8)


def test_late_tokens_of_a_request_that_is_over_are_counted_and_stopped_once_a_second(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).silence("decode-0").pass_s(2.5)
    yard.dispatched(request, "decode-1", attempt=2)
    yard.tokens(request, 1, 8, worker="decode-1", attempt=2, finish="stop")
    yard.forget().pass_s(1.5)
    for index in range(1, 4):
        yard.tokens(request, index, 666, attempt=1)
    assert yard.count("late_tokens_total") == 3
    assert [(m.attempt, to) for m, to in yard.sent(CancelAttempt)] == [(1, ("decode-0",))]


def test_tokens_of_an_earlier_life_of_this_gateway_are_stopped(yard: Yard):
    yard.frame("decode-0", entry("req-of-old", 3, 7))
    assert [m.request_id for m, _ in yard.sent(CancelAttempt)] == ["req-of-old"]


def test_a_frame_may_arrive_before_the_dispatch_that_announces_it(yard: Yard):
    request = yard.accept()
    yard.queued(request).tokens(request, 0, 7)
    assert (request.state, request.worker) == ("streaming", "decode-0")
    yard.dispatched(request, prefill_worker="prefill-0")
    yard.tokens(request, 1, 8, finish="stop")
    assert taken(request) == text_of(7, 8)


def test_a_scheduler_may_start_a_higher_attempt_while_nothing_was_emitted(yard: Yard):
    """The first worker refused; the frame of the second attempt comes before its dispatch."""
    request = yard.running()
    yard.tokens(request, 0, 7, worker="decode-1", attempt=2)
    assert (request.attempt, request.worker) == (2, "decode-1")
    assert [(m.attempt, to) for m, to in yard.sent(CancelAttempt)] == [(1, ("decode-0",))]
    assert taken(request) == text_of(7)


def test_a_higher_attempt_that_did_not_start_from_our_tokens_is_refused(yard: Yard):
    """The answer of a router was lost, so the scheduler dispatched anew what streams already."""
    request = yard.running()
    yard.tokens(request, 0, 7).forget()
    yard.dispatched(request, "decode-1", attempt=2, prefill_worker="prefill-1")
    cancelled = {(m.attempt, to[0]) for m, to in yard.sent(CancelAttempt)}
    assert cancelled == {(2, "decode-1"), (2, "prefill-1")}
    yard.tokens(request, 0, 666, worker="decode-1", attempt=2)
    yard.tokens(request, 1, 8)
    assert taken(request) == text_of(7, 8)
    yard.forget().silence("decode-0").pass_s(2.5)
    assert [m.card.attempt for m in yard.scheduled()] == [3]


def test_a_higher_attempt_at_the_same_worker_ends_the_one_that_streams(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).forget()
    yard.dispatched(request, "decode-0", attempt=2)
    [schedule] = yard.scheduled()
    assert (schedule.card.attempt, emitted_in(schedule)) == (3, {0: (7,)})


def test_of_two_routers_the_later_one_counts_unless_the_first_has_begun(yard: Yard):
    request = yard.running()
    yard.dispatched(request, "decode-1", router_epoch=2)
    assert request.worker == "decode-1"
    assert [to for _, to in yard.sent(CancelAttempt)] == [("decode-0",)]
    yard.tokens(request, 0, 7, worker="decode-1").forget()
    yard.dispatched(request, "decode-0", router_epoch=3)
    assert request.worker == "decode-1"
    assert [to for _, to in yard.sent(CancelAttempt)] == [("decode-0",)]


def test_a_dispatch_of_a_cancelled_request_is_cancelled_at_its_workers(yard: Yard):
    request = yard.accept()
    yard.hear(yard.core.cancel("req-1", "client_gone", yard.now_s)).forget()
    yard.dispatched(request, "decode-0", prefill_worker="prefill-0")
    assert sorted(to[0] for _, to in yard.sent(CancelAttempt)) == ["decode-0", "prefill-0"]


# Continuation.


@pytest.mark.parametrize("why", ["silent", "goodbye", "restarted", "stuck"])
def test_a_lost_worker_is_replaced_from_prompt_and_emitted_ids(yard: Yard, why):
    request = yard.running()
    yard.tokens(request, 0, 7, 8).forget()
    match why:
        case "silent":
            yard.silence("decode-0").pass_s(2.5)
        case "goodbye":
            yard.heartbeat("worker", "decode-0", state="stopped")
        case "restarted":
            yard.heartbeat("worker", "decode-0", epoch=2)
        case "stuck":
            yard.heartbeat("worker", "decode-0", running=1, watermark=5)
            for _ in range(4):  # its agent lives and speaks, its engine makes no step
                yard.pass_s(2.6)
                yard.frame("decode-0", entry("req-1", 2))
    schedule = yard.scheduled()[0]
    assert (schedule.card.attempt, schedule.card.emitted_tokens) == (2, 2)
    assert emitted_in(schedule) == {0: (7, 8)}
    assert "interrupted" in yard.steps()
    yard.dispatched(request, "decode-1", attempt=2)
    yard.tokens(request, 2, 9, worker="decode-1", attempt=2, finish="stop")
    assert taken(request) == text_of(7, 8, 9)


def test_an_attempt_that_is_given_up_is_cancelled_at_its_workers(yard: Yard):
    """So that one that was only stopped ends it when it wakes up."""
    request = yard.accept()
    yard.dispatched(request, "decode-0", prefill_worker="prefill-0").tokens(request, 0, 7)
    yard.silence("decode-0").pass_s(2.5)
    cancelled = {(m.attempt, to[0]) for m, to in yard.sent(CancelAttempt)}
    assert cancelled == {(1, "decode-0"), (1, "prefill-0")}


def test_what_was_held_behind_a_gap_is_not_taken_for_emitted(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).tokens(request, 2, 9).forget()
    yard.silence("decode-0").pass_s(2.5)
    [schedule] = yard.scheduled()
    assert emitted_in(schedule) == {0: (7,)}


def test_text_that_lagged_behind_its_ids_comes_from_the_next_worker(yard: Yard):
    request = yard.running()
    yard.frame("decode-0", ("req-1", 1, 0, 0, [7], "", None, None)).forget()
    yard.silence("decode-0").pass_s(2.5)
    assert emitted_in(yard.scheduled()[0]) == {0: (7,)}
    yard.dispatched(request, "decode-1", attempt=2)
    yard.frame("decode-1", ("req-1", 2, 0, 1, [8], "é", None, ["stop", None, 0]))
    assert taken(request) == "é"


def test_with_several_choices_each_goes_on_where_it_stands(yard: Yard):
    request = yard.running(choices=3)
    yard.frame(
        "decode-0",
        entry("req-1", 0, 7, 8, choice=0),
        entry("req-1", 0, 5, choice=1, end=["stop", None, 0]),
    )
    yard.forget().silence("decode-0").pass_s(2.5)
    [schedule] = yard.scheduled()
    assert schedule.card.emitted_tokens == 3
    assert emitted_in(schedule) == {0: (7, 8), 1: (5,)}
    assert finished_in(schedule) == [1]
    yard.dispatched(request, "decode-1", attempt=2)
    yard.frame(
        "decode-1",
        entry("req-1", 2, 9, choice=0, attempt=2, end=["stop", None, 0]),
        entry("req-1", 0, 6, choice=2, attempt=2, end=["stop", None, 0]),
    )
    assert [taken(request, c) for c in range(3)] == [text_of(7, 8, 9), text_of(5), text_of(6)]
    assert request.state == "done"


def test_a_choice_whose_last_token_arrived_is_ended_and_not_continued(yard: Yard):
    request = yard.running(max_tokens=2)
    yard.tokens(request, 0, 7, 8).forget()
    yard.silence("decode-0").pass_s(2.5)
    assert (yard.scheduled(), yard.steps()) == ([], ["interrupted", "finished"])
    finish = request.streams[0].finish
    assert finish is not None
    assert finish.reason == "length"


def test_a_choice_whose_end_token_arrived_is_ended_and_not_continued(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7, END_ID).silence("decode-0").pass_s(2.5)
    finish = request.streams[0].finish
    assert finish is not None
    assert finish.reason == "stop"


def test_an_attempt_that_begins_before_the_tokens_it_was_given_is_replaced(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).silence("decode-0").pass_s(2.5)
    yard.dispatched(request, "decode-1", attempt=2).forget()
    yard.tokens(request, 0, 666, worker="decode-1", attempt=2)
    assert [m.card.attempt for m in yard.scheduled()] == [3]
    assert taken(request) == text_of(7)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_engine_that_fails_an_attempt_is_left(yard: Yard, reason):
    request = yard.running()
    yard.tokens(request, 0, 7, finish=reason)
    [schedule] = [m for m in yard.scheduled() if m.card.attempt == 2]
    assert emitted_in(schedule) == {0: (7,)}
    assert taken(request) == text_of(7)


def test_a_request_that_ends_every_worker_it_meets_stops(yard: Yard):
    yard = Yard(interruptions_max=2).fleet()
    request = yard.running()
    for attempt in (1, 2, 3):
        worker = f"decode-{(attempt + 1) % 2}"
        yard.dispatched(request, worker, attempt=attempt)
        yard.tokens(request, 0, worker=worker, attempt=attempt, finish="error")
    assert [e.code for e in yard.ends()] == ["too_many_attempts"]


def test_a_worker_that_was_lost_before_its_dispatch_was_heard_is_noticed(yard: Yard):
    request = yard.accept()
    yard.silence("decode-0").pass_s(2.5)
    yard.queued(request).dispatched(request, "decode-0").forget()
    yard.pass_s(2.5)
    assert [m.card.attempt for m in yard.scheduled()] == [2]


def test_when_everybody_is_silent_it_is_we_who_cannot_hear(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7)
    heard = dict(yard.peers)
    yard.silence(*heard).forget().pass_s(8.0)
    assert yard.said == []
    yard.peers.update(heard)
    yard.pass_s(0.3)
    assert (request.attempt, request.state) == (1, "streaming")


# Repair.


def test_a_gap_is_asked_for_once_and_filled_by_the_answer(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).tokens(request, 2, 9).tokens(request, 3, 10)
    [ask] = yard.asked()
    [position] = ask.message.positions
    assert (ask.worker, position.attempt, position.next_index) == ("decode-0", 1, 1)
    yard.answer(ask, entry("req-1", 1, 8))
    assert taken(request) == text_of(7, 8, 9, 10)
    yard.forget().pass_s(2.0)
    assert yard.asked() == []


def test_a_high_water_entry_reveals_a_lost_tail(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).frame("decode-0", entry("req-1", 3))
    [ask] = yard.asked()
    yard.answer(ask, entry("req-1", 1, 8, 9))
    assert taken(request) == text_of(7, 8, 9)


def test_one_question_names_all_streams_of_a_worker(yard: Yard):
    for n in range(5):
        yard.running(f"req-{n}")
    yard.frame("decode-0", *[entry(f"req-{n}", 1, 8) for n in range(5)])
    [ask] = yard.asked()
    assert len(ask.message.positions) == 5


def test_a_question_without_an_answer_is_asked_again_and_never_twice_at_once(yard: Yard):
    request = yard.running()
    yard.tokens(request, 1, 8)
    [ask] = yard.asked()
    yard.forget().pass_s(1.5).tokens(request, 2, 9)
    assert yard.asked() == []
    yard.no_answer(ask).pass_s(0.5)
    [again] = yard.asked()
    yard.answer(again, entry("req-1", 0, 7))
    assert taken(request) == text_of(7, 8, 9)


def test_an_answer_that_was_cut_is_followed_by_the_next_question(yard: Yard):
    request = yard.running()
    yard.frame("decode-0", entry("req-1", 3))
    [ask] = yard.asked()
    yard.forget().answer(ask, entry("req-1", 0, 7), more=True)
    [again] = yard.asked()
    assert again.message.positions[0].next_index == 1
    yard.answer(again, entry("req-1", 1, 8, 9))
    assert taken(request) == text_of(7, 8, 9)


def test_after_a_reconnect_a_cut_answer_leaves_the_rest_to_be_asked_for(yard: Yard):
    for name in ("req-1", "req-2"):
        yard.running(name)
    yard.hear(yard.core.on_reconnect(yard.now_s))
    [ask] = yard.asked()
    yard.forget().answer(ask, entry("req-1", 0, 7), more=True)
    [again] = yard.asked()
    assert [p.request_id for p in again.message.positions] == ["req-1", "req-2"]
    yard.forget().answer(again, entry("req-2", 0, 5)).pass_s(1.0)
    assert yard.asked() == []
    assert taken(yard.core.requests["req-2"]) == text_of(5)


def test_one_question_names_at_most_so_many_streams(yard: Yard):
    for n in range(POSITIONS_MAX + 40):
        yard.running(f"req-{n}")
    yard.hear(yard.core.on_reconnect(yard.now_s))
    [ask] = yard.asked()
    assert len(ask.message.positions) == POSITIONS_MAX
    yard.forget().answer(ask).pass_s(0.5)
    [rest] = yard.asked()
    assert len(rest.message.positions) == 40


def test_a_gap_that_nobody_fills_ends_the_attempt(yard: Yard):
    request = yard.running()
    yard.tokens(request, 0, 7).tokens(request, 2, 9)
    for _ in range(6):
        [ask] = yard.asked()
        yard.forget().pass_s(2.0)
        if yard.scheduled():
            break
        yard.answer(ask).pass_s(0.3)
    schedule = yard.scheduled()[0]
    assert (schedule.card.attempt, emitted_in(schedule)) == (2, {0: (7,)})


def test_a_stream_that_is_silent_for_long_is_asked_for(yard: Yard):
    """So the end of a stream is found even when the last frame of all was lost."""
    request = yard.running()
    yard.tokens(request, 0, 7).forget().pass_s(2.9)
    assert yard.asked() == []
    yard.pass_s(1.5)
    [ask] = yard.asked()
    yard.answer(ask, entry("req-1", 1, 8, end=["stop", None, 0]))
    assert (taken(request), request.state) == (text_of(7, 8), "done")


def test_a_silent_stream_whose_worker_knows_it_is_left_alone(yard: Yard):
    request = yard.running()
    for _ in range(5):
        yard.pass_s(4.0)
        yard.answer(yard.asked()[-1])
    assert (request.attempt, yard.steps()) == (1, [])


def test_a_worker_that_does_not_know_the_stream_loses_it(yard: Yard):
    request = yard.running()
    yard.pass_s(4.1)
    for _ in range(2):
        [ask] = yard.asked()
        yard.forget().answer(ask, unknown=ask.message.positions).pass_s(0.5)
    assert [m.card.attempt for m in yard.scheduled()] == [2]
    assert request.interruptions == 1


def test_malformed_entries_are_counted_and_harm_nobody(yard: Yard):
    request = yard.running()
    bad: list[Any] = [
        ("req-1", 1, 9, 0, [1], "t", None, None),
        ("req-1", 1, -1, 0, [1], "t", None, None),
        ("req-1", 1, 0, -1, [1], "t", None, None),
        ("req-1", 1, 0, 0, [-1], "t", None, None),
        ("req-1", 1, 0, 0, [2**32], "t", None, None),
        ("req-1", 1, 0, 0, [1], "t", {"logprobs": 7}, None),
        ("req-1", 1, 0, 0, [1], "t", None, []),
        ("req-1", 1, 0, 0, [1], "t", None, ["stop"]),
        ("req-1", 1, 0, 0, [1], "t", None, [7, None, 0]),
        ("req-1", 1, 0, 0, [1], "t", None, ["stop", None, "0"]),
        ("req-1", 1, 0, 0, [1], "t", None, [["error"], None, 0]),
    ]
    yard.frame("decode-0", *bad)
    assert yard.count("malformed_entries_total") == len(bad)
    yard.tokens(request, 0, 7)
    assert taken(request) == text_of(7)


# Cancel and deadlines.


def test_a_client_that_leaves_cancels_at_the_scheduler_and_at_both_workers(yard: Yard):
    request = yard.accept()
    yard.dispatched(request, "decode-0", prefill_worker="prefill-0").forget()
    yard.hear(yard.core.cancel("req-1", "client_gone", yard.now_s))
    assert [to for _, to in yard.sent(CancelRequest)] == [("scheduler-0",)]
    assert sorted(to[0] for _, to in yard.sent(CancelAttempt)) == ["decode-0", "prefill-0"]
    assert (yard.steps(), yard.core.requests) == (["cancelled"], {})
    yard.forget().hear(yard.core.cancel("req-1", "client_gone", yard.now_s))
    assert yard.said == []


def test_tokens_on_their_way_after_a_cancel_are_dropped_without_another_cancel(yard: Yard):
    request = yard.running()
    yard.hear(yard.core.cancel("req-1", "client_gone", yard.now_s)).forget()
    yard.tokens(request, 0, 7)
    assert (yard.sent(CancelAttempt), yard.delivers()) == ([], [])
    assert yard.count("late_tokens_total") == 1


@pytest.mark.parametrize("stage", ["no scheduler", "submitted", "queued", "running", "streaming"])
def test_at_its_deadline_a_request_ends_wherever_it_stands(stage):
    yard = Yard()
    if stage != "no scheduler":
        yard.fleet()
    request = yard.accept(budget_ms=5_000)
    if stage == "queued":
        yard.queued(request)
    if stage in ("running", "streaming"):
        yard.dispatched(request)
    if stage == "streaming":
        yard.tokens(request, 0, 7)
    yard.forget().pass_s(4.9)
    assert yard.ends() == []
    yard.pass_s(0.3)
    assert [e.code for e in yard.ends()] == ["deadline_exceeded"]
    assert yard.core.requests == {}


def test_a_first_token_that_does_not_come_in_time_ends_the_attempt():
    yard = Yard(first_token_timeout_s=5.0).fleet()
    yard.running()
    for _ in range(3):
        yard.pass_s(1.5).frame("decode-0", entry("req-1", 0))
    assert yard.scheduled() == []
    yard.pass_s(1.0)
    assert [m.card.attempt for m in yard.scheduled()] == [2]


def test_a_stream_may_be_slow_once_its_first_token_came():
    yard = Yard(first_token_timeout_s=5.0).fleet()
    request = yard.running()
    yard.tokens(request, 0, 7)
    for _ in range(6):
        yard.pass_s(1.5).frame("decode-0", entry("req-1", 1))
    assert yard.scheduled() == []


def test_nothing_is_left_when_all_requests_are_over(yard: Yard):
    for n in range(4):
        yard.running(f"req-{n}", worker=f"decode-{n % 2}")
    yard.tokens(yard.core.requests["req-0"], 0, 7, finish="stop")
    yard.tokens(yard.core.requests["req-1"], 3, 7, worker="decode-1")
    yard.hear(yard.core.cancel("req-1", "client_gone", yard.now_s))
    yard.refused(yard.core.requests["req-2"], "engine_error")
    yard.hear(yard.core.fail("req-3", "shutting_down", "", yard.now_s))
    yard.pass_s(5.0)
    core = yard.core
    assert (core.requests, core._by_worker) == ({}, {})
    for ask in yard.asked():
        yard.answer(ask)
    yard.pass_s(1.0)
    assert not core._repairs
