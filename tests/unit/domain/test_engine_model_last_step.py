"""What the engine model says of its last step is what was in it, whenever somebody looks."""

from dataclasses import replace

import pytest

from components.domain.engine_model import EngineLimits, EngineModel, ModelRequest
from components.domain.profiles import StepTimeProfile, profile_named


def profiled() -> StepTimeProfile:
    found = profile_named("llama3-8b/tp1/h100")
    assert isinstance(found, StepTimeProfile)
    return found


PROFILE = profiled()


def made(*requests, profile=PROFILE, speed=1.0, **limits):
    model = EngineModel(profile, EngineLimits(**limits), speed=speed)
    for number, (prompt, output) in enumerate(requests):
        model.submit(ModelRequest(str(number), prompt, output), 0.0)
    return model


def each_step(model):
    """The last step, at the end of each."""
    seen = []
    while (at_s := model.next_step_at()) is not None:
        model.advance(at_s)
        seen.append(model.last_step())
    return seen


def test_there_is_none_before_one_has_ended():
    model = made((1_000, 5))
    assert model.last_step() is None
    model.advance(0.001)
    assert model.last_step() is None


def test_steps_add_up_to_the_time_that_the_engine_was_busy():
    model = made((1_000, 50), (5_000, 20), (300, 5), step_tokens_max=2_048)
    seen = each_step(model)
    assert sum(step.took_s for step in seen) == pytest.approx(model.gauges().busy_s)
    computed = sum(step.tokens for step in seen)
    assert computed == 6_300 + 49 + 19 + 4  # the first token of each comes with its prompt


def test_a_decode_step_has_a_token_of_each_and_takes_what_the_profile_says():
    seen = [s for s in each_step(made((1_000, 50), (500, 50))) if s.tokens == 2]
    assert len(seen) == 49
    assert [s.context_tokens for s in seen] == [1_502 + 2 * n for n in range(49)]
    for step in seen:
        expected_ms = PROFILE.step_ms(decoding=2, context_tokens=step.context_tokens)
        assert (step.running, step.took_s * 1e3) == (2, pytest.approx(expected_ms))


def test_a_prompt_in_chunks_has_what_was_computed_of_it_as_context():
    seen = each_step(made((2_500, 1), step_tokens_max=1_000))
    assert [(s.tokens, s.running, s.context_tokens) for s in seen] == [
        (1_000, 1, 0),
        (1_000, 1, 1_000),
        (500, 1, 2_000),
    ]


def test_who_looks_late_sees_the_same_last_step():
    exact, late = made((1_000, 300), (70, 200)), made((1_000, 300), (70, 200))
    seen = each_step(exact)
    at_s = 0.0
    while at_s < 2.0:
        at_s += 0.0777
        late.advance(at_s)
        found = late.last_step()
        assert found is not None
        near = seen[late.gauges().steps - 1]
        assert found.took_s == pytest.approx(near.took_s)
        assert replace(found, took_s=0.0) == replace(near, took_s=0.0)


def test_speed_divides_its_time():
    slow, fast = each_step(made((1_000, 5))), each_step(made((1_000, 5), speed=4.0))
    assert [s.took_s for s in slow] == pytest.approx([4 * s.took_s for s in fast])


def test_where_each_request_has_its_own_clock_there_are_no_steps():
    model = made((1_000, 5), profile=profile_named("constant:ttft_ms=5,itl_ms=1"))
    model.advance(1.0)
    assert model.gauges().steps == 5
    assert model.last_step() is None
