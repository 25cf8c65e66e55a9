import pytest

from components.domain.outcomes import Count
from components.registry.core import RegistryCore
from schemas.engine import EngineLoadReported, EngineStatesReceived
from schemas.examples import STATE, example
from schemas.fleet import FleetJoined, FleetLeft, HeartbeatSent


def heartbeat(instance: str = "decode-0", epoch: int = 1, **changes: object) -> HeartbeatSent:
    return example(HeartbeatSent, instance=instance, process_epoch=epoch, **changes)


def load(engine: str = "decode-0", epoch: int = 1, **changes: object) -> EngineLoadReported:
    return example(EngineLoadReported, engine=engine, engine_epoch=epoch, **changes)


def state(engine: str = "http://a:8000", at_ms: int = 5, **changes: object) -> EngineStatesReceived:
    state = STATE.model_copy(update={"engine_id": engine, "timestamp_ms": at_ms, **changes})
    return EngineStatesReceived(engine_id=engine, states=(state,))


def test_a_process_joins_once_per_life():
    core = RegistryCore()
    assert core.on_message(heartbeat(state="starting"), 1.0) == [
        example(FleetJoined, process_epoch=1)
    ]
    assert core.on_message(heartbeat(), 1.25) == []
    assert [type(o) for o in core.on_message(heartbeat(epoch=2), 1.5)] == [FleetLeft, FleetJoined]
    assert core.on_message(heartbeat(epoch=1), 1.75) == []


def test_a_silent_process_is_lost_and_shown_so_with_its_silence():
    core = RegistryCore(silent_after_s=2.0)
    core.on_message(heartbeat(), 10.0)
    assert core.on_tick(12.0) == []
    (left,) = core.on_tick(12.1)
    assert isinstance(left, FleetLeft)
    assert (left.lost, left.silent_ms, left.process_epoch) == (True, 2100, 1)
    (entry,) = core.show(13.0).processes
    assert (entry.lost, entry.silent_ms, entry.heartbeat.instance) == (True, 3000, "decode-0")


def test_a_goodbye_is_no_loss():
    core = RegistryCore()
    core.on_message(heartbeat(), 10.0)
    (left,) = core.on_message(heartbeat(state="stopped"), 10.5)
    assert isinstance(left, FleetLeft)
    assert not left.lost
    (entry,) = core.show(11.0).processes
    assert (entry.lost, entry.heartbeat.state) == (False, "stopped")
    assert core.on_message(heartbeat(state="stopped"), 11.0) == []


def test_who_comes_back_is_there_once():
    core = RegistryCore()
    core.on_message(heartbeat(), 10.0)
    core.on_tick(20.0)
    core.on_message(heartbeat(), 21.0)
    (entry,) = core.show(21.5).processes
    assert (entry.lost, entry.silent_ms) == (False, 500)


def test_a_stuck_engine_s_process_is_still_there():
    core = RegistryCore()
    for beat in range(100):
        assert core.on_message(heartbeat(running=3, watermark=7), 1.0 + beat)[1:] == []
        assert core.on_tick(1.0 + beat) == []


def test_nobody_is_lost_because_we_could_not_hear():
    core = RegistryCore()
    core.on_message(heartbeat(), 10.0)
    core.on_resume(60.0)
    assert core.on_tick(61.0) == []
    assert core.on_tick(62.5) != []


def test_an_engine_has_an_age_and_is_stale_after_2_s():
    core = RegistryCore()
    core.on_message(load(), 10.0)
    (entry,) = core.show(12.0).engines
    assert (entry.engine, entry.age_ms, entry.stale, entry.load) == (
        "decode-0",
        2000,
        False,
        load(),
    )
    (entry,) = core.show(12.01).engines
    assert entry.stale


def test_a_load_of_an_older_life_never_overwrites():
    core = RegistryCore()
    core.on_message(load(epoch=2, running=1), 10.0)
    assert core.on_message(load(epoch=1, running=50), 11.0) == [Count("loads_of_old_lives_total")]
    (entry,) = core.show(11.0).engines
    assert entry.load is not None
    assert (entry.load.running, entry.age_ms) == (1, 1000)


def test_an_older_bridged_state_never_overwrites_a_fresh_one():
    core = RegistryCore()
    core.on_message(state(at_ms=100, pending_tokens_total=1), 10.0)
    assert core.on_message(state(at_ms=99), 10.5) == [Count("states_reordered_total")]
    (entry,) = core.show(10.5).engines
    assert entry.state is not None
    assert entry.state.pending_tokens_total == 1
    # A clock that was set back does not silence its sender for ever.
    assert core.on_message(state(at_ms=50, pending_tokens_total=2), 12.5) == []
    (entry,) = core.show(12.5).engines
    assert entry.state is not None
    assert entry.state.pending_tokens_total == 2


def test_an_engine_known_both_ways_is_one_entry():
    core = RegistryCore()
    core.on_message(load("a"), 10.0)
    core.on_message(state("a"), 11.0)
    (entry,) = core.show(11.5).engines
    assert entry.load is not None
    assert entry.state is not None
    assert entry.age_ms == 500


def test_who_was_silent_for_5_minutes_is_forgotten():
    core = RegistryCore()
    core.on_message(heartbeat(), 0.0)
    core.on_message(load("a"), 0.0)
    core.on_message(state("b"), 100.0)
    core.on_tick(299.0)
    shown = core.show(299.0)
    assert (len(shown.processes), [e.engine for e in shown.engines]) == (1, ["a", "b"])
    core.on_tick(300.0)
    shown = core.show(300.0)
    assert (shown.processes, [e.engine for e in shown.engines]) == ((), ["b"])


def test_the_tables_are_bounded_and_what_finds_no_place_is_counted():
    core = RegistryCore(processes_max=2, engines_max=2)
    counts = [core.on_message(heartbeat(f"w-{n}"), 10.0)[-1] for n in range(4)]
    assert counts[2:] == [Count("processes_ignored_total")] * 2
    assert core.on_message(state("a"), 10.0) == []
    assert core.on_message(state("b"), 11.0) == []
    assert core.on_message(state("c"), 12.0) == [Count("engines_ignored_total")]
    # The place of a stale one is free.
    assert core.on_message(state("c"), 12.5) == []
    shown = core.show(12.5)
    assert len(shown.processes) == 2
    assert [e.engine for e in shown.engines] == ["b", "c"]
    # b was heard last, so c's place is the one to give away.
    assert core.on_message(state("b", at_ms=6), 14.0) == []
    assert core.on_message(state("d"), 15.0) == []
    assert [e.engine for e in core.show(15.0).engines] == ["b", "d"]
    core.on_tick(20.0)
    core.on_message(heartbeat("w-7"), 20.0)
    core.on_message(heartbeat("w-8"), 20.0)
    core.on_tick(30.0)
    assert len(core.show(30.0).processes) == 2


@pytest.mark.parametrize("instances", [["b-0", "a-1", "a-0"]])
def test_the_picture_is_in_order_of_name(instances: list[str]):
    core = RegistryCore()
    for instance in instances:
        core.on_message(heartbeat(instance), 1.0)
        core.on_message(load(instance), 1.0)
    shown = core.show(1.0)
    assert [p.heartbeat.instance for p in shown.processes] == sorted(instances)
    assert [e.engine for e in shown.engines] == sorted(instances)
