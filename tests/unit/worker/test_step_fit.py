"""Step times are learnt: the coefficients come out, follow a change, and stay sane on odd steps."""

import random

import pytest

from components.domain.cost import step_ms
from components.worker.step_fit import FORGET, SAMPLES_MIN, StepFit

TRUTH = (6.0, 0.02, 0.05, 0.0001)


def cost(truth, tokens, running, context):
    return truth[0] + truth[1] * tokens + truth[2] * running + truth[3] * context


def steps(number, seed=1):
    """Steps as an engine makes them: decoding, and now and then a chunk of a prompt."""
    source = random.Random(seed)
    context = 1_000
    for _ in range(number):
        running = source.randrange(1, 64)
        chunk = source.choice((0, 0, 0, 256, 1_024, 2_048))
        context = source.randrange(running * 100, running * 2_000)
        yield running + chunk, running, context


def learnt(truth=TRUTH, number=2_000, noise=0.0, fit=None, seed=1):
    source = random.Random(seed + 100)
    fit = fit or StepFit()
    for tokens, running, context in steps(number, seed):
        took_ms = cost(truth, tokens, running, context) * source.lognormvariate(0, noise)
        fit.on_step(took_ms, tokens=tokens, running=running, context=context)
    return fit


def worst(fit, truth=TRUTH):
    """The largest relative error of what it would predict, on steps it has not seen."""
    found = fit.fit()
    said = (found.base_ms, found.per_token_ms, found.per_seq_ms, found.per_context_token_ms)
    return max(abs(cost(said, *s) / cost(truth, *s) - 1) for s in steps(300, seed=9))


def test_the_coefficients_come_out():
    found = learnt().fit()
    assert found is not None
    said = (found.base_ms, found.per_token_ms, found.per_seq_ms, found.per_context_token_ms)
    assert said == pytest.approx(TRUTH, rel=0.03)
    assert found.error < 0.01
    assert found.samples == 2_000


@pytest.mark.parametrize(("noise", "within"), [(0.05, 0.05), (0.3, 0.2)])
def test_noise_is_averaged_away_and_told_as_error(noise, within):
    fit = learnt(noise=noise)
    assert worst(fit) < within
    found = fit.fit()
    assert found is not None
    assert 0.4 * noise < found.error < 2 * noise


def test_it_follows_a_machine_that_became_slower_within_500_requests_worth_of_steps():
    fit = learnt()
    slower = tuple(2 * c for c in TRUTH)
    learnt(slower, number=3_000, fit=fit, seed=2)
    assert worst(fit, slower) < 0.05
    assert FORGET**3_000 < 0.01


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_machine_far_off_what_was_known_is_believed_in_the_end(factor):
    """No step counts for more than a few times what was expected, and that grows."""
    fit, other = learnt(), tuple(factor * c for c in TRUTH)
    for seed in range(40):
        learnt(other, number=100, fit=fit, seed=seed)
        fit.fit()  # as each report of the load does
    assert worst(fit, other) < 0.05


def test_a_few_stalls_change_little():
    fit = StepFit()
    for number, (tokens, running, context) in enumerate(steps(2_000)):
        took_ms = cost(TRUTH, tokens, running, context) * (100 if number % 100 == 99 else 1)
        fit.on_step(took_ms, tokens=tokens, running=running, context=context)
    assert worst(fit) < 0.1


@pytest.mark.parametrize("running", [0, 1, 8])
def test_steps_that_are_all_alike_are_predicted_and_nothing_blows_up(running):
    fit = StepFit()
    for _ in range(500):
        fit.on_step(10.0, tokens=max(1, running), running=running, context=0)
    found = fit.fit()
    assert found is not None
    said = found.base_ms + found.per_token_ms * max(1, running) + found.per_seq_ms * running
    assert said == pytest.approx(10.0, rel=0.01)
    assert min(found.base_ms, found.per_token_ms, found.per_seq_ms) >= 0.0


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_features_that_move_together_are_predicted_together(noise):
    """An engine that only decodes: a token for each sequence, and all contexts about as long."""
    source, fit = random.Random(5), StepFit()
    for _ in range(3_000):
        running = source.randrange(1, 64)
        took_ms = cost(TRUTH, running, running, 500 * running) * source.lognormvariate(0, noise)
        fit.on_step(took_ms, tokens=running, running=running, context=500 * running)
    found = fit.fit()
    assert found is not None
    for running in (1, 8, 63):
        said = step_ms(found, tokens=running, running=running, context=500 * running)
        true = cost(TRUTH, running, running, 500 * running)
        assert said == pytest.approx(true, rel=0.01 + noise / 2)
    least = (found.base_ms, found.per_token_ms, found.per_seq_ms, found.per_context_token_ms)
    assert min(least) >= 0.0


def test_it_holds_as_much_after_many_steps_and_no_figure_grows_without_end():
    fit = learnt(number=100)
    before = [len(row) for row in fit._xx]
    learnt(number=20_000, fit=fit)
    assert [len(row) for row in fit._xx] == before
    assert fit._xx[0][0] <= 1 / (1 - FORGET)


def test_a_cost_that_is_not_there_is_booked_as_nothing_and_never_as_a_gain():
    found = learnt((5.0, 0.0, 0.0, 0.0), noise=0.1).fit()
    assert found is not None
    assert found.per_token_ms >= 0.0
    assert found.per_context_token_ms >= 0.0
    assert found.base_ms == pytest.approx(5.0, rel=0.1)


def test_nothing_is_said_before_there_is_something():
    fit = StepFit()
    assert fit.fit() is None
    for _ in range(SAMPLES_MIN - 1):
        fit.on_step(1.0, tokens=1, running=1, context=1)
    assert fit.fit() is None
    fit.on_step(1.0, tokens=1, running=1, context=1)
    assert fit.fit() is not None


@pytest.mark.parametrize(
    ("took_ms", "tokens"),
    [(0.0, 5), (-1.0, 5), (5.0, 0), (float("nan"), 5), (float("inf"), 5)],
)
def test_what_is_no_step_is_not_counted(took_ms, tokens):
    fit = StepFit()
    for _ in range(50):
        fit.on_step(took_ms, tokens=tokens, running=1, context=1)
    assert fit.fit() is None
