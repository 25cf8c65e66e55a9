"""For any calls: a plain engine says the same, looking changes nothing, nothing leaks."""

from math import inf, nextafter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.domain.engine_model import (
    Admitted,
    EngineGauges,
    EngineLimits,
    EngineModel,
    Finished,
    FirstToken,
    ModelEvent,
    PagesRemoved,
    PagesStored,
    Preempted,
    PrefillFinished,
    StepEnded,
)
from components.domain.engine_model.run import Run
from components.domain.profiles import ConstantProfile, Profile
from tests.unit.domain.engine_calls import (
    CONSTANT,
    LATE_S,
    QUICK,
    SPEED,
    calls,
    closing,
    engines,
    play_at_random,
    play_late,
    play_live,
    play_sparse,
    with_known_times,
)
from tests.unit.domain.reference_engine import ReferenceEngine

PROFILES = pytest.mark.parametrize("profile", [QUICK, CONSTANT], ids=["steps", "constant"])
LEVELS = ["running", "waiting", "pinned", "queued_tokens", "context_tokens", "kv_pages_used"]


@settings(max_examples=200)
@given(engine=engines(QUICK))
def test_the_model_tells_the_story_of_the_plain_engine(engine):
    bounds, made = engine
    told = play_live(EngineModel(QUICK, bounds, speed=SPEED), made)
    assert told == ReferenceEngine(QUICK, bounds, SPEED).run(made)


@PROFILES
@settings(max_examples=100)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_looking_changes_nothing(profile: Profile, data: st.DataObject, seed: int):
    bounds, made = data.draw(engines(profile))
    models = [EngineModel(profile, bounds, speed=SPEED) for _ in range(4)]
    live = play_live(models[0], made)
    told = [
        play_sparse(models[1], made),
        play_late(models[2], made),
        play_at_random(models[3], made, seed),
    ]
    for events in told:
        assert with_known_times(events, live) == live
    gauges = [model.gauges() for model in models]
    assert gauges.count(gauges[0]) == len(gauges)


@PROFILES
@settings(max_examples=100)
@given(data=st.data())
def test_an_engine_at_rest_holds_nothing(profile: Profile, data: st.DataObject):
    bounds, made = data.draw(engines(profile))
    model = EngineModel(profile, bounds, speed=SPEED)
    play_sparse(model, closing(made))
    gauges = model.gauges()
    assert {name: getattr(gauges, name) for name in LEVELS} == dict.fromkeys(LEVELS, 0)
    assert model.next_step_at() is None
    assert model.predicted_backlog_ms(LATE_S) == 0.0
    assert model.predicted_step_ms() == 0.0


@PROFILES
@settings(max_examples=100)
@given(data=st.data())
def test_every_request_gets_each_token_once_and_in_time(profile: Profile, data: st.DataObject):
    bounds, made = data.draw(engines(profile))
    model = EngineModel(profile, bounds, speed=SPEED)
    tokens: dict[str, int] = {}
    first_s: dict[str, float] = {}
    last_s = 0.0
    for event in play_live(model, made):
        assert event.at_s >= last_s, "events are in order of time"
        last_s = event.at_s
        match event:
            case StepEnded(_, _, 1, ids):
                assert len(set(ids)) == len(ids) <= bounds.seqs_max
                for name in ids:
                    tokens[name] = tokens.get(name, 0) + 1
                    first_s.setdefault(name, event.at_s)
            case FirstToken(name, at_s):
                assert first_s[name] == at_s
                assert tokens[name] == 1
            case Finished(name, _, output_tokens):
                assert tokens[name] == output_tokens
            case _:
                pass
    assert sum(tokens.values()) == model.gauges().output_tokens


@PROFILES
@settings(max_examples=100)
@given(data=st.data())
def test_nothing_but_tokens_and_evictions_comes_before_the_next_event(
    profile: Profile, data: st.DataObject
):
    bounds, made = data.draw(engines(profile))

    class Watched(EngineModel):
        def advance(self, now_s: float) -> list[ModelEvent]:
            due_s = self.next_event_at()
            at_once_s = max((at_s for at_s, _, _ in made if at_s <= now_s), default=0.0)
            events = super().advance(now_s)
            for event in events:
                if not isinstance(event, StepEnded | PagesRemoved):
                    assert event.at_s <= at_once_s or event.at_s == due_s
            return events

    play_sparse(Watched(profile, bounds, speed=SPEED), made)


@PROFILES
@settings(max_examples=100)
@given(data=st.data())
def test_the_events_of_pages_add_up_to_the_cache(profile: Profile, data: st.DataObject):
    bounds, made = data.draw(engines(profile))
    model = EngineModel(profile, bounds, speed=SPEED)
    here: set[int] = set()
    for event in play_sparse(model, closing(made)):
        match event:
            case PagesStored(_, hashes, parent):
                assert not here & set(hashes)
                assert parent == 0 or parent in here
                here |= set(hashes)
            case PagesRemoved(_, hashes):
                assert here >= set(hashes)
                here -= set(hashes)
            case Admitted(_, _, hit_tokens):
                assert hit_tokens <= 16 * len(here)
            case _:
                pass
        assert len(here) <= (bounds.kv_pages or 0)
    assert model.gauges().kv_pages_cached == len(here)


@settings(max_examples=50)
@given(engine=engines(QUICK))
def test_the_gauges_stay_within_the_limits(engine):
    bounds, made = engine
    seen: list[EngineGauges] = []

    class Watched(EngineModel):
        def advance(self, now_s: float) -> list[ModelEvent]:
            events = super().advance(now_s)
            seen.append(self.gauges())
            return events

    play_live(Watched(QUICK, bounds, speed=SPEED), made)
    for gauges in seen:
        assert gauges.running <= bounds.seqs_max
        assert gauges.kv_pages_used + gauges.kv_pages_cached <= gauges.kv_pages_total
        assert min(getattr(gauges, name) for name in LEVELS) >= 0


ROOMY = EngineLimits(seqs_max=4, kv_pages=60, waiting_max=100)


@settings(max_examples=50)
@given(made=calls(ConstantProfile(), ROOMY))
def test_zero_time_steps_leave_nobody_without_a_token(made):
    requests = {whom.request_id: whom for _, what, whom in made if what == "submit"}
    ended_early = {whom for _, what, whom in made if what in {"cancel", "finish"}}
    model = EngineModel(ConstantProfile(), ROOMY)
    finished: dict[str, int] = {}
    for event in play_live(model, made):
        match event:
            case StepEnded():
                assert event.steps == 1
            case Finished(name, _, output_tokens):
                finished[name] = output_tokens
            case PrefillFinished(name, _):
                finished[name] = 0
            case _:
                pass
    for name, request in requests.items():
        if name not in ended_early:
            assert finished[name] == (0 if request.kind == "prefill" else request.output_tokens)


@given(
    start_s=st.floats(0, 1e6),
    base_s=st.floats(1e-4, 1.0),
    growth_s=st.just(0.0) | st.floats(0, 1e-4),
    steps=st.integers(1, 100_000),
    data=st.data(),
)
def test_a_run_knows_to_the_last_bit_which_steps_have_ended(start_s, base_s, growth_s, steps, data):
    run = Run(start_s, base_s, growth_s, steps, first_tick=0)
    step = data.draw(st.integers(1, steps))
    assert run.ended_by(run.end_s(step)) == step
    assert run.ended_by(nextafter(run.end_s(step), -inf)) == step - 1
    run.done = data.draw(st.integers(0, step))
    assert run.ended_by(run.end_s(step)) == step


def test_the_random_calls_reach_what_they_are_meant_to_reach():
    """Guards the properties above: their examples preempt, evict, hit, pin and make long runs."""
    seen: dict[str, int] = {}

    @settings(max_examples=200, database=None, derandomize=True)
    @given(engine=engines(QUICK))
    def collect(engine) -> None:
        bounds, made = engine
        for event in play_sparse(EngineModel(QUICK, bounds, speed=SPEED), made):
            name = type(event).__name__
            if isinstance(event, Admitted) and event.hit_tokens:
                name = "hit"
            if isinstance(event, StepEnded) and event.steps > 1:
                name = "run"
            seen[name] = seen.get(name, 0) + 1

    collect()
    wanted = [Preempted.__name__, PagesRemoved.__name__, PrefillFinished.__name__, "hit", "run"]
    assert min(seen.get(name, 0) for name in wanted) >= 20, seen
