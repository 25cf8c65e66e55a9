"""Random calls to an engine, and what one compares of the events they cause."""

from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import strategies as st

from components.domain.engine_model import (
    EngineLimits,
    EngineModel,
    EngineModelError,
    ModelEvent,
    ModelRequest,
    RequestKind,
    StepEnded,
)
from components.domain.profiles import ConstantProfile, Profile, StepTimeProfile
from tests.unit.domain.reference_engine import Call

# Steps of 2 to 10 ms, so that a few hundred of them fall between two calls or none at all. Every
# coefficient is a sum of few powers of two, and so are a millisecond at this speed and the times of
# calls: sums are exact, and a call comes at the very end of a step whatever way that was computed.
SPEED = 1.024
QUICK = StepTimeProfile(
    name="quick",
    w0_ms=2.0,
    w1_ms_per_token=1 / 64,
    p0_ms=-1.0,
    p1_ms_per_token=9 / 128,
    q_ms_per_pair=2**-15,
    d0_ms=3 / 8,
    ds_ms_per_seq=7 / 64,
    dc_ms_per_token=2**-9,
    kv_bytes_per_token=1,
    kv_tokens=1_000,
    host_ms=0.25,
)
CONSTANT = ConstantProfile(ttft_ms=11.0, itl_ms=3.0, kv_tokens=1_000)

LATE_S = 1e6


def near(value: float) -> Any:
    """`value` but for rounding, wherever a float belongs."""
    return pytest.approx(value)


# Three families of prompts; equal families share pages as far as both prompts go.
FAMILY_PAGES = [tuple(range(1 + family * 100, 20 + family * 100)) for family in range(3)]

limits = st.builds(
    EngineLimits,
    seqs_max=st.integers(1, 6),
    step_tokens_max=st.sampled_from([8, 24, 64, 2048]),
    prefills_max=st.sampled_from([1, 2, 256]),
    kv_pages=st.integers(6, 30),
    waiting_max=st.sampled_from([2, 100]),
)


@st.composite
def requests(draw: st.DrawFn, number: int) -> ModelRequest:
    kind: RequestKind = draw(st.sampled_from(["aggregated", "aggregated", "prefill", "decode"]))
    prompt = draw(st.integers(1, 200))
    family = draw(st.sampled_from([(), *FAMILY_PAGES]))
    return ModelRequest(
        f"r{number}",
        prompt_tokens=prompt,
        output_tokens=draw(st.integers(1, 120)),
        page_hashes=family[: draw(st.integers(0, prompt // 16))],
        kind=kind,
    )


@st.composite
def calls(draw: st.DrawFn, profile: Profile, bounds: EngineLimits) -> list[Call]:
    """Submissions, and cancels, finishes and releases of whoever may be there, in order of time.

    Many come at the very end of a step: what that is, `profile` under `bounds` says.
    """
    model = EngineModel(profile, bounds, speed=SPEED)
    made: list[Call] = []
    at_s = 0.0
    for number in range(draw(st.integers(1, 14))):
        if draw(st.booleans()):
            for _ in range(draw(st.integers(1, 3))):
                at_s = model.next_step_at() or at_s
                model.advance(at_s)
        else:
            at_s += (
                draw(st.sampled_from([0, 111, 1_400, 14_200, 133_000]) | st.integers(0, 3_000))
                / 2**16
            )
        what = draw(st.sampled_from(["submit"] * 4 + ["cancel", "finish", "release"]))
        if what == "submit":
            made.append((at_s, what, draw(requests(number))))
        else:
            made.append((at_s, what, f"r{draw(st.integers(0, number))}"))
        call(model, what, made[-1][2], at_s)
    return made


@st.composite
def engines(draw: st.DrawFn, profile: Profile) -> tuple[EngineLimits, list[Call]]:
    """Limits of an engine, and calls to it."""
    bounds = draw(limits)
    return bounds, draw(calls(profile, bounds))


def closing(made: list[Call]) -> list[Call]:
    """The same calls, and late releases of every prefill, so that nothing stays pinned."""
    ids = [whom.request_id for _, _, whom in made if isinstance(whom, ModelRequest)]
    last_s = made[-1][0]
    for turn in range(len(ids)):
        made = [*made, *((last_s + 50.0 + 50.0 * turn, "release", name) for name in ids)]
    return made


def call(model: EngineModel, what: str, whom: ModelRequest | str, at_s: float) -> None:
    if isinstance(whom, ModelRequest):
        with suppress(EngineModelError):
            model.submit(whom, at_s)
    else:
        getattr(model, what)(whom, at_s)


def play_live(model: EngineModel, made: list[Call]) -> list[ModelEvent]:
    """As a live engine does: there at the end of every step."""
    events: list[ModelEvent] = []
    for at_s, what, whom in made:
        while (step_at := model.next_step_at()) is not None and step_at <= at_s:
            events += model.advance(step_at)
        call(model, what, whom, at_s)
    while (step_at := model.next_step_at()) is not None:
        events += model.advance(step_at)
    return events + model.advance(LATE_S)


def play_sparse(model: EngineModel, made: list[Call]) -> list[ModelEvent]:
    """As a simulation does: there when something changes."""
    events: list[ModelEvent] = []
    for at_s, what, whom in made:
        while (event_at := model.next_event_at()) is not None and event_at <= at_s:
            events += model.advance(event_at)
        call(model, what, whom, at_s)
    while (event_at := model.next_event_at()) is not None:
        events += model.advance(event_at)
    return events + model.advance(LATE_S)


def play_late(model: EngineModel, made: list[Call]) -> list[ModelEvent]:
    """As nobody should: never there between calls, and everything at the end."""
    for at_s, what, whom in made:
        call(model, what, whom, at_s)
    return model.advance(LATE_S)


def play_at_random(model: EngineModel, made: list[Call], seed: int) -> list[ModelEvent]:
    """Looking in at any time, early, late, twice, asking for everything there is to ask."""
    random = Random(seed)
    events: list[ModelEvent] = []
    now_s = 0.0
    for at_s, what, whom in made:
        for look_s in sorted(random.uniform(now_s, at_s) for _ in range(random.randrange(4))):
            events += model.advance(look_s)
            model.gauges()
            model.predicted_backlog_ms(look_s)
            model.predicted_step_ms()
            model.next_event_at()
        now_s = at_s
        if random.random() < 0.3:
            events += model.advance(at_s)
        call(model, what, whom, at_s)
    while (event_at := model.next_event_at()) is not None:
        now_s = random.uniform(now_s, event_at)
        events += model.advance(random.choice([now_s, event_at]))
    return events + model.advance(LATE_S)


def with_known_times(events: list[ModelEvent], known: list[ModelEvent]) -> list[ModelEvent]:
    """`events` with runs of steps taken apart and in order of time, as a live engine sees them.

    A run tells only when its last step ended; the inner ones get the times that `known` has. All
    that happens inside a run are evictions at the beginning of a step, told after the step before.
    """
    times_s = {e.step: e.at_s for e in known if isinstance(e, StepEnded)}
    apart: list[tuple[float, bool, ModelEvent]] = []
    for event in events:
        if isinstance(event, StepEnded):
            for step in range(event.step - event.steps + 1, event.step):
                inner = StepEnded(times_s[step], step, 1, event.request_ids)
                apart.append((inner.at_s, False, inner))
            apart.append((event.at_s, True, replace(event, steps=1)))
        else:
            apart.append((event.at_s, True, event))
    return [event for _, _, event in sorted(apart, key=lambda row: row[:2])]
