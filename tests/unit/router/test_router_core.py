"""The router's decisions: workers, reports and windows in; plans and reasons out."""

import pytest

from components.domain.outcomes import Answer, Record
from schemas.attempt import RunAttempt
from schemas.engine import Admitted
from schemas.request import RequestDispatched
from schemas.routing import RoomChanged
from tests.unit.router.yard import PAIR, SHARD, Yard, card, load, sent


def test_a_pair_shares_the_work_and_decode_hears_of_it_first() -> None:
    reply, outcomes = Yard(*PAIR).show(card("a"))
    (plan,) = reply.plans
    assert (plan.prefill_worker, plan.worker, plan.transfer_id) == ("prefill-0", "decode-0", "a.1")
    runs = sent(outcomes, RunAttempt)
    assert [(r.phase, r.peer) for r in runs] == [("decode", "prefill-0"), ("prefill", "decode-0")]
    (dispatched,) = sent(outcomes, RequestDispatched)
    assert (dispatched.worker, dispatched.prefill_worker) == ("decode-0", "prefill-0")
    assert [o.step for o in outcomes if isinstance(o, Record)] == ["routed", "dispatched"]


def test_the_dispatch_leaves_before_the_answer() -> None:
    _, outcomes = Yard(*PAIR).show(card("a"))
    assert isinstance(outcomes[-1], Answer)


def test_an_aggregated_engine_runs_both_phases() -> None:
    reply, outcomes = Yard(("aggregated-0", "aggregated")).show(card("a"))
    assert [(p.worker, p.prefill_worker) for p in reply.plans] == [("aggregated-0", None)]
    assert [r.phase for r in sent(outcomes, RunAttempt)] == ["aggregated"]


@pytest.mark.parametrize("left", [("decode-0", "decode"), ("prefill-0", "prefill")])
def test_when_one_half_is_gone_the_other_does_both(left: tuple[str, str]) -> None:
    reply, outcomes = Yard(left).show(card("a"))
    assert [p.worker for p in reply.plans] == [left[0]]
    assert [r.phase for r in sent(outcomes, RunAttempt)] == ["aggregated"]


def test_an_engine_may_be_kept_to_its_role() -> None:
    reply, _ = Yard(("decode-0", "decode"), any_engine_may_do_both=False).show(card("a"))
    assert [w.reason for w in reply.waits] == ["no_decode_room"]


def test_no_more_is_dispatched_than_an_engine_has_room_for() -> None:
    yard = Yard(*PAIR)
    reply, _ = yard.show(*(card(n) for n in "abcdef"))
    assert [p.request_id for p in reply.plans] == list("abcd")
    assert [(w.request_id, w.reason) for w in reply.waits] == [
        ("e", "no_decode_room"),
        ("f", "no_decode_room"),
    ]


def test_a_report_that_contains_a_dispatch_is_not_counted_twice() -> None:
    yard = Yard(*PAIR)
    yard.show(card("a"), card("b"))
    view = yard.core.views["decode-0"]
    assert view.load == 2
    admitted = (Admitted(router="router-0", router_epoch=1, dispatch_seq=1),)
    yard.report(load("decode-0", "decode", running=1, admitted=admitted))
    assert view.load == 2
    admitted = (Admitted(router="router-0", router_epoch=1, dispatch_seq=2),)
    yard.report(load("decode-0", "decode", running=2, admitted=admitted))
    assert view.load == 2


def test_an_end_is_counted_once_whether_or_not_the_report_knows_it() -> None:
    yard = Yard(*PAIR)
    yard.show(card("a"), card("b"))
    view = yard.core.views["decode-0"]
    yard.ended("a", "decode-0")
    assert view.load == 1
    admitted = (Admitted(router="router-0", router_epoch=1, dispatch_seq=2),)
    yard.report(load("decode-0", "decode", running=1, admitted=admitted))
    assert view.load == 1
    yard.ended("b", "decode-0")
    yard.ended("b", "decode-0")
    assert view.load == 0


def test_every_counter_is_zero_when_the_engine_is_idle_even_if_ends_were_lost() -> None:
    yard = Yard(*PAIR)
    yard.show(card("a"), card("b"))
    admitted = (Admitted(router="router-0", router_epoch=1, dispatch_seq=2),)
    for name, role in PAIR:
        yard.report(load(name, role, admitted=admitted))
    for view in yard.core.views.values():
        assert (view.load, view.queued_tokens, view.open) == (0, 0, {})


def test_an_older_report_never_overwrites_a_newer_one() -> None:
    yard = Yard(*PAIR)
    yard.report(load("decode-0", "decode", running=3), seq=90)
    yard.report(load("decode-0", "decode", running=0), seq=89)
    assert yard.core.views["decode-0"].load == 3


def test_stale_means_ineligible_not_idle() -> None:
    yard = Yard(*PAIR, stale_after_s=2.0)
    yard.now_s = 2.6
    for name, role in PAIR:
        yard.beat(name, role)
    reply, _ = yard.show(card("a"))
    assert [w.reason for w in reply.waits] == ["no_fresh_worker"]


def test_a_lost_worker_is_not_chosen() -> None:
    yard = Yard(*PAIR)
    yard.core.on_tick(2.6)
    reply, _ = yard.show(card("a"))
    assert [w.reason for w in reply.waits] == ["no_worker"]


def test_a_draining_worker_is_not_chosen() -> None:
    yard = Yard(("aggregated-0", "aggregated"), ("aggregated-1", "aggregated"))
    yard.report(load("aggregated-0", "aggregated", accepting=False))
    reply, _ = yard.show(card("a"), card("b"))
    assert {p.worker for p in reply.plans} == {"aggregated-1"}


def test_prefill_and_decode_take_turns_independently() -> None:
    workers = [*PAIR, ("decode-1", "decode"), ("decode-2", "decode"), ("prefill-1", "prefill")]
    yard = Yard(*workers, policy="round_robin")
    reply, _ = yard.show(*(card(n) for n in "abcdef"))
    assert [p.prefill_worker for p in reply.plans] == ["prefill-0", "prefill-1"] * 3
    assert [p.worker for p in reply.plans] == ["decode-0", "decode-1", "decode-2"] * 2


def test_the_least_loaded_engine_gets_the_next_request() -> None:
    yard = Yard(("aggregated-0", "aggregated"), ("aggregated-1", "aggregated"))
    yard.report(load("aggregated-0", "aggregated", running=2))
    reply, _ = yard.show(*(card(n) for n in "abc"))
    assert [p.worker for p in reply.plans] == ["aggregated-1", "aggregated-1", "aggregated-0"]


def test_prompts_wait_when_a_prefill_engine_has_enough_tokens_to_compute() -> None:
    yard = Yard(*PAIR, prefill_tokens_max=1000)
    reply, _ = yard.show(*(card(n, prompt_tokens=600) for n in "ab"))
    assert [p.request_id for p in reply.plans] == ["a"]
    assert [w.reason for w in reply.waits] == ["no_prefill_room"]


def test_a_prompt_waits_for_kv_pages_but_an_idle_engine_always_takes_one() -> None:
    yard = Yard(("aggregated-0", "aggregated"))
    yard.report(load("aggregated-0", "aggregated", kv_pages_total=100))
    reply, _ = yard.show(*(card(n, prompt_tokens=1500) for n in "ab"))
    assert [p.request_id for p in reply.plans] == ["a"]


def test_whoever_found_no_room_is_invited_once_when_there_is_some() -> None:
    yard = Yard(*PAIR)
    yard.show(*(card(n) for n in "abcde"))
    (room,) = sent(yard.ended("a", "decode-0"), RoomChanged)
    assert room.shard == SHARD
    assert sent(yard.ended("b", "decode-0"), RoomChanged) == []


def test_before_the_warm_up_is_over_cards_wait() -> None:
    yard = Yard(*PAIR, warm=False)
    reply, _ = yard.show(card("a"))
    assert [w.reason for w in reply.waits] == ["warming_up"]
    assert yard.core.shards == ()


def test_a_new_router_goes_above_the_epoch_that_workers_have_seen() -> None:
    yard = Yard(*PAIR, warm=False)
    yard.report(load("decode-0", "decode", router_epoch_max=7))
    yard.core.on_tick(0.0)
    yard.core.on_tick(0.5)
    assert yard.core.epoch == 8


def test_a_router_that_is_told_it_is_old_steps_down_and_comes_back_above() -> None:
    yard = Yard(*PAIR)
    _, outcomes = yard.show(card("a"))
    assert {r.router_epoch for r in sent(outcomes, RunAttempt)} == {1}
    yard.report(load("decode-0", "decode", router_epoch_max=5))
    reply, _ = yard.show(card("b"))
    assert [w.reason for w in reply.waits] == ["warming_up"]
    yard.core.on_tick(0.6)
    yard.core.on_tick(1.2)
    assert yard.core.epoch == 6


def test_a_worker_that_restarted_starts_from_nothing() -> None:
    yard = Yard(*PAIR)
    yard.show(card("a"))
    yard.beat("decode-0", "decode", epoch=2)
    view = yard.core.views["decode-0"]
    assert (view.load, view.report) == (0, None)
    yard.ended("a", "decode-0")  # the old life speaks
    assert view.load == 0


def test_n_choices_take_n_places() -> None:
    yard = Yard(*PAIR)
    yard.show(card("a", choices=3))
    assert yard.core.views["decode-0"].load == 3
    assert yard.core.views["prefill-0"].load == 1


def test_one_place_for_the_prompt_is_enough_for_n_choices() -> None:
    yard = Yard(*PAIR, prefill_requests_max=2)
    reply, _ = yard.show(card("a", choices=3))
    yard.core.views["decode-0"].open.clear()
    reply, _ = yard.show(card("b", choices=2))
    assert [p.prefill_worker for p in reply.plans] == ["prefill-0"]
