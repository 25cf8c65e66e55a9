"""Another policy is judged at each decision, on the state that the recorded one had."""

import pytest

from components.domain.outcomes import Answer
from components.host.journal import Tick
from components.replay.compare import Comparison, compare, is_decision
from components.replay.recording import Recording
from components.replay.rerun import BadPolicy, rerun
from schemas.engine import StepTimeFit
from schemas.examples import CARD, HEARTBEAT, LOAD
from schemas.request import ScheduleRequest
from schemas.routing import RouteWindow, RouteWindowReply
from tests.unit.replay.test_replay import Journalist, random_life

FIT = StepTimeFit(
    base_ms=5.0,
    per_token_ms=0.02,
    per_seq_ms=0.1,
    per_context_token_ms=0.0001,
    samples=99,
    error=0.01,
)


def a_router(fit: StepTimeFit | None = FIT) -> Journalist:
    """Two decode engines that do both; one is always busier, and requests come one by one."""
    life = Journalist("router")
    for name, running in (("decode-0", 6), ("decode-1", 0)):
        beat = HEARTBEAT.model_copy(update={"instance": name, "role": "aggregated"})
        load = LOAD.model_copy(
            update={
                "engine": name,
                "role": "aggregated",
                "engine_epoch": beat.process_epoch,
                "running": running,
                "waiting": 0,
                "queued_tokens": 1000 * running,
                "step_fit": fit,
            }
        )
        life.turn(1.0, beat)
        life.core.on_message(load, 1.0, 1)
    life.core.on_tick(1.0)
    life.core.epoch = 1  # type: ignore[attr-defined]
    life.entries.clear()
    life.snapshots[:] = [life.snapshot(1.0)]
    for number in range(4):
        card = CARD.model_copy(update={"request_id": f"r{number}", "gateway": "gateway-0"})
        life.turn(1.0, RouteWindow(shard=LOAD.shard, scheduler="s", window=number, cards=(card,)))
    return life


def recorded() -> Recording:
    life, recording = a_router(), Recording()
    at = (life.snapshots[0].owner, life.snapshots[0].owner_epoch)
    recording.snapshots[at].extend(life.snapshots)
    recording.entries[at].extend(life.entries)
    return recording


def test_the_recorded_policy_decides_the_same_again():
    found = rerun(recorded())
    assert [life.exact for life in found.lives] == [True]
    assert (found.compared, found.policy) == (0, "")


def test_another_policy_differs_where_it_would_have_chosen_otherwise():
    found = rerun(recorded(), route="round_robin")
    assert (found.compared, found.policy) == (4, "route=round_robin")
    # least_loaded never took decode-0; round_robin takes it whenever decode-1 was last.
    assert found.different == len(found.differences) == 4
    assert {(d.recorded, d.instead) for d in found.differences} == {("decode-1", "decode-0")}
    assert found.effect_ms_mean is not None
    assert found.effect_ms_mean > 0


def test_each_decision_is_judged_on_the_recorded_state_not_on_what_the_other_would_have_made():
    life = a_router()
    into = Comparison(10)
    compare(life.snapshots[0], life.entries, lambda ref: None, {"policy": "least_loaded"}, into)
    assert (into.compared, into.different) == (4, 0)


def test_what_lies_between_decisions_is_part_of_the_state_they_are_judged_on():
    for component in ("scheduler", "router"):
        life = random_life(component, seed=4)
        decisions = sum(map(is_decision, life.entries))
        assert 10 < decisions < len(life.entries)
        for start in life.snapshots:
            into = Comparison(10)
            compare(start, life.entries, lambda ref: None, {}, into)
            assert into.differences == []
            after = sum(is_decision(e) for e in life.entries if e.index > start.index)
            assert into.compared >= after


def test_an_effect_is_the_other_s_modelled_cost_less_that_of_the_recorded():
    replies = [o.message for o in a_router().outcomes if isinstance(o, Answer)]
    plans = [plan for r in replies if isinstance(r, RouteWindowReply) for plan in r.plans]
    found = rerun(recorded(), route="round_robin")
    for plan, difference in zip(plans, found.differences, strict=True):
        cost_ms = {c.worker: c.cost_ms or 0.0 for c in plan.candidates}
        more_ms = round(cost_ms["decode-0"] - cost_ms["decode-1"], 3)
        assert difference.effect_ms == more_ms > 0


def test_without_an_engine_model_differences_have_no_effect():
    life = a_router(fit=None)
    into = Comparison(10)
    compare(life.snapshots[0], life.entries, lambda ref: None, {"policy": "round_robin"}, into)
    assert (into.different, into.effects, into.effect_ms_mean) == (4, 0, None)
    assert [d.effect_ms for d in into.differences] == [None] * 4


def test_another_order_is_told_as_one():
    life = Journalist("scheduler")
    for number in range(3):
        card = CARD.model_copy(update={"request_id": f"r{number}"})
        life.turn(1.0, ScheduleRequest(card=card))
    life.turn(
        1.1,
        HEARTBEAT.model_copy(
            update={"component": "router", "instance": "router-0", "owns": (CARD.model,)}
        ),
        Tick(),
    )
    into = Comparison(10)
    compare(life.snapshots[0], life.entries, lambda ref: None, {"window_cards_max": "2"}, into)
    assert [(d.kind, d.recorded, d.instead) for d in into.differences] == [
        ("order", "r0 r1 r2", "r0 r1")
    ]


def test_only_so_many_differences_are_listed_and_all_are_counted():
    life = a_router()
    into = Comparison(2)
    compare(life.snapshots[0], life.entries, lambda ref: None, {"policy": "round_robin"}, into)
    assert (len(into.differences), into.different, into.effects) == (2, 4, 4)


@pytest.mark.parametrize(("order", "route"), [("nonsense", None), (None, "nonsense")])
def test_a_policy_that_does_not_exist_is_told_with_those_that_do(
    order: str | None, route: str | None
):
    with pytest.raises(BadPolicy, match=r"there are: .*(fifo|least_loaded)"):
        rerun(Recording(), order, route)


def test_entries_without_a_snapshot_before_them_are_named():
    recording = recorded()
    recording.entries[("router-9", 1)].extend(a_router().entries)
    assert rerun(recording).notes == (
        "router-9: 4 entries without a snapshot before them were left out",
    )
