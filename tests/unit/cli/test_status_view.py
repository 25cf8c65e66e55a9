"""What is missing or not well is named, and only that."""

import json
from dataclasses import replace

import pytest

from components.cli.status_view import (
    BusState,
    ComponentState,
    Snapshot,
    StreamState,
    as_text,
    components_of,
)
from schemas.examples import HEARTBEAT, LOAD, STATE, example
from schemas.fleet import (
    EngineEntry,
    FleetEntry,
    FleetRegistered,
    ShowComponentReply,
    ShowFleetReply,
)

BUS = BusState(
    "nats://127.0.0.1:4222",
    connected=True,
    server_version="2.15.1",
    jetstream=True,
    streams=(StreamState("REQUESTS", 12, 2048, 1, 12),),
)
SHOWN = ShowComponentReply(heartbeat=HEARTBEAT, counters={"b": 2, "a": 1})


def snapshot(
    components: tuple[ComponentState, ...] = (),
    engines: tuple[EngineEntry, ...] = (),
    bus: BusState = BUS,
    *,
    registry_answers: bool = True,
) -> Snapshot:
    at_ms = HEARTBEAT.since_ms + 90_000
    return Snapshot(at_ms, "http://x", components, engines, bus, registry_answers)


def fleet(*entries: FleetEntry) -> ShowFleetReply:
    return ShowFleetReply(processes=entries, engines=())


def test_a_healthy_yard_has_no_problems():
    shown = components_of([SHOWN], fleet(), {"decode-0": "worker"})
    found = snapshot(shown, (EngineEntry(engine="decode-0", age_ms=80, stale=False, load=LOAD),))
    assert found.problems() == []
    assert found.to_plain()["ok"] is True


def test_what_a_process_says_itself_wins_over_what_the_registry_heard():
    heard = FleetEntry(heartbeat=HEARTBEAT, silent_ms=5000, lost=True)
    (one,) = components_of([SHOWN], fleet(heard), {})
    assert (one.state, one.answers, one.counters) == ("ready", True, {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("lost", "state"), [(True, "lost"), (False, "does not answer")], ids=["lost", "silent"]
)
def test_a_process_that_only_the_registry_knows_is_a_problem(lost: bool, state: str):
    heard = FleetEntry(heartbeat=HEARTBEAT, silent_ms=5000, lost=lost)
    found = snapshot(components_of([], fleet(heard), {}))
    assert found.problems() == [f"decode-0: {state}"]


def test_a_process_that_should_run_and_was_never_heard_of_is_missing():
    found = snapshot(components_of([], None, {"router-0": "router"}))
    assert found.problems() == ["router-0: missing"]


@pytest.mark.parametrize("state", ["starting", "degraded", "draining"])
def test_a_process_that_is_not_ready_is_a_problem(state: str):
    reply = SHOWN.model_copy(update={"heartbeat": HEARTBEAT.model_copy(update={"state": state})})
    assert snapshot(components_of([reply], None, {})).problems() == [f"decode-0: {state}"]


def test_our_engine_must_report_and_a_foreign_one_may_fall_silent():
    ours = EngineEntry(engine="decode-0", age_ms=9000, stale=True, load=LOAD)
    foreign = EngineEntry(engine="http://10.0.0.7", age_ms=9000, stale=True, state=STATE)
    assert snapshot(engines=(ours, foreign)).problems() == [
        "engine decode-0: no report for 9000 ms"
    ]


def test_the_bus_the_registry_and_jetstream_are_named_when_they_are_away():
    gone = BusState("nats://x", error="refused")
    assert snapshot(bus=gone).problems() == ["no connection to nats://x: refused"]
    assert snapshot(registry_answers=False).problems() == [
        "the registry does not answer: engines are not known"
    ]
    (problem,) = snapshot(bus=BusState("nats://x", connected=True)).problems()
    assert "JetStream does not answer" in problem


def test_a_single_stream_that_is_missing_hides_no_other():
    bus = replace(BUS, missing=("TOKENS: stream not found",))
    assert snapshot(bus=bus).problems() == ["stream TOKENS: stream not found"]
    assert "REQUESTS" in as_text(snapshot(bus=bus))


def test_everything_that_was_found_goes_out_as_json():
    shown = components_of([SHOWN], None, {})
    found = snapshot(shown, (EngineEntry(engine="e", age_ms=1, stale=False, state=STATE),))
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["components"][0]["pid"] == HEARTBEAT.pid
    assert plain["engines"][0]["state"]["pending_tokens_total"] == STATE.pending_tokens_total
    assert plain["bus"]["streams"][0]["last_seq"] == 12


def test_the_page_for_people_has_every_process_engine_stream_and_problem():
    components = components_of([SHOWN], None, {"router-0": "router"})
    engines = (
        EngineEntry(engine="decode-0", age_ms=80, stale=False, load=LOAD),
        EngineEntry(engine="http://10.0.0.7", age_ms=9000, stale=True, state=STATE),
        EngineEntry(engine="nothing", age_ms=1, stale=False),
    )
    text = as_text(snapshot(components, engines))
    for part in (
        "decode-0", "4242", "yard-1", "1 min", "sim/words", "router-0", "missing",
        "9 running, 0 waiting, KV 812/25000 pages", "384 tokens pending", "9000 ms STALE",
        "nothing known", "nats-server 2.15.1", "REQUESTS", "2.0 KiB", "PROBLEMS",
    ):  # fmt: skip
        assert part in text, part


def test_engines_elsewhere_have_a_table_of_their_own_and_stand_in_the_json():
    pings = example(FleetRegistered)
    named = FleetRegistered(instance="b:80", role="decode", http_address="b:80", by="static")
    found = replace(snapshot(), registered=(pings, named))
    assert found.problems() == []
    table = as_text(found).split("\n\n")[1].splitlines()
    assert [line.split() for line in table] == [
        ["ENGINE", "ELSEWHERE", "ROLE", "KV", "CONNECTOR", "KNOWN", "BY"],
        ["10.0.0.5:20003", "prefill", "10.0.0.5:21001", "ping"],
        ["b:80", "decode", "-", "static"],
    ]
    plain = json.loads(json.dumps(found.to_plain()))
    assert [engine["by"] for engine in plain["registered"]] == ["ping", "static"]
    assert "ENGINE ELSEWHERE" not in as_text(snapshot())
