"""Another policy is judged at each decision, on the state that the recorded one had."""

import pytest

from components.replay.compare import Comparison, compare
from components.replay.recording import Recording
from components.replay.rerun import BadPolicy, rerun
from schemas.engine import StepTimeFit
from schemas.examples import CARD, HEARTBEAT, LOAD
from schemas.routing import RouteWindow
from tests.unit.replay.test_replay import Journalist

FIT = StepTimeFit(
    base_ms=5.0,
    per_token_ms=0.02,
    per_seq_ms=0.1,
    per_context_token_ms=0.0001,
    samples=99,
    error=0.01,
)


def a_router() -> Journalist:
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
                "step_fit": FIT,
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
    assert all(d.effect_ms and d.effect_ms > 0 for d in found.differences)
    assert found.effect_ms_mean is not None
    assert found.effect_ms_mean > 0


def test_each_decision_is_judged_on_the_recorded_state_not_on_what_the_other_would_have_made():
    life = a_router()
    into = Comparison(10)
    compare(life.snapshots[0], life.entries, lambda ref: None, {"policy": "least_loaded"}, into)
    assert (into.compared, into.different) == (4, 0)


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
