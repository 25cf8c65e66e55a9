"""Two classes of request, each served whole by a pool of its own, and what else may happen."""

from typing import Any, get_args

import pytest

from components.domain.outcomes import Outcome, Record
from components.router.policies import POLICIES, ClassBounds, Pool
from components.router.policies.segregate import pool_of
from components.router.settings import RouterSettings
from schemas.attempt import RunAttempt
from schemas.request import RequestCard
from tests.unit.router.yard import PAIR, Yard, card, load, sent

BOUNDS = ClassBounds(prompt_tokens=800, ratio=4.0, output_tokens=100)
TWO_EACH = (*PAIR, ("prefill-1", "prefill"), ("decode-1", "decode"))


def long(request_id: str) -> RequestCard:
    return card(request_id, prompt_tokens=801, output_tokens_max=400)


def short(request_id: str) -> RequestCard:
    return card(request_id, prompt_tokens=100, output_tokens_max=400)


def segregated(*workers: tuple[str, str], **settings: Any) -> Yard:
    return Yard(*(workers or PAIR), policy="segregate", **settings)


def reasons(outcomes: list[Outcome]) -> list[object]:
    routed = [o.detail for o in outcomes if isinstance(o, Record) and o.step == "routed"]
    return [(detail.get("policy"), detail.get("pool"), detail.get("role")) for detail in routed]


def test_every_policy_of_the_settings_is_there():
    assert set(get_args(RouterSettings.model_fields["policy"].annotation)) == set(POLICIES)


@pytest.mark.parametrize(
    ("prompt", "output", "pool"),
    [
        (800, 200, "decode"),
        (801, 10_000, "prefill"),
        (400, 100, "decode"),
        (401, 100, "prefill"),
        (1, 1, "decode"),
        (5, 1, "prefill"),
    ],
)
def test_a_long_prompt_or_one_far_longer_than_the_answer_is_heavy_on_prefill(
    prompt: int, output: int, pool: Pool
):
    request = card("a", prompt_tokens=prompt, output_tokens_max=output)
    assert pool_of(request, BOUNDS) == pool


@pytest.mark.parametrize(("prompt", "pool"), [(400, "decode"), (401, "prefill")])
def test_without_a_limit_the_answer_is_as_long_as_expected_not_as_what_fits(
    prompt: int, pool: Pool
):
    facts = {"output_tokens_max": 30_000, "output_tokens_given": False}
    assert pool_of(card("a", prompt_tokens=prompt, **facts), BOUNDS) == pool
    # What was written so far is computed again, and says nothing of what is to come.
    emitted = card("a", prompt_tokens=prompt - 300, emitted_tokens=300, **facts)
    assert pool_of(emitted, BOUNDS) == pool


def test_what_does_not_fit_is_not_expected():
    facts = {"output_tokens_max": 10, "output_tokens_given": False}
    assert pool_of(card("a", prompt_tokens=41, **facts), BOUNDS) == "prefill"


def test_every_choice_is_written_and_the_prompt_computed_once():
    facts = {"prompt_tokens": 500, "output_tokens_max": 100}
    assert pool_of(card("a", **facts), BOUNDS) == "prefill"
    assert pool_of(card("a", choices=2, **facts), BOUNDS) == "decode"


def test_a_continuation_is_weighed_by_what_is_left_of_it():
    facts = {"prompt_tokens": 100, "output_tokens_max": 500}
    assert pool_of(card("a", emitted_tokens=0, **facts), BOUNDS) == "decode"
    assert pool_of(card("a", emitted_tokens=450, **facts), BOUNDS) == "prefill"
    assert pool_of(card("a", emitted_tokens=500, **facts), BOUNDS) == "prefill"


def test_each_class_is_served_whole_by_its_own_pool():
    reply, outcomes = segregated(*TWO_EACH).show(
        long("a"), short("b"), long("c"), short("d"), long("e")
    )
    assert [p.worker for p in reply.plans] == [
        "prefill-0",
        "decode-0",
        "prefill-1",
        "decode-1",
        "prefill-0",
    ]
    assert {(p.prefill_worker, p.transfer_id) for p in reply.plans} == {(None, None)}
    runs = sent(outcomes, RunAttempt)
    assert {(r.phase, r.peer, r.transfer_id) for r in runs} == {("aggregated", None, None)}


def test_the_record_says_to_which_pool_a_request_belongs_and_who_serves_it():
    _, outcomes = segregated().show(long("a"), short("b"))
    assert reasons(outcomes) == [
        ("segregate", "prefill", "prefill"),
        ("segregate", "decode", "decode"),
    ]
    _, outcomes = Yard(*PAIR).show(long("a"))
    assert reasons(outcomes) == [("least_loaded", None, None)]


def test_the_bounds_are_settings():
    bounds = {"segregate_prompt_tokens": 50, "segregate_ratio": 100.0}
    reply, _ = segregated(**bounds).show(short("a"))
    assert [p.worker for p in reply.plans] == ["prefill-0"]


def test_whoever_finds_his_pool_full_waits_for_it_and_nobody_else_does():
    yard = segregated()
    reply, _ = yard.show(*(long(n) for n in "abcde"), short("f"))
    assert [(p.request_id, p.worker) for p in reply.plans] == [
        *((n, "prefill-0") for n in "abcd"),
        ("f", "decode-0"),
    ]
    assert [(w.request_id, w.reason) for w in reply.waits] == [("e", "no_prefill_room")]
    reply, _ = yard.show(*(short(n) for n in "ghij"))
    assert [(w.request_id, w.reason) for w in reply.waits] == [("j", "no_decode_room")]


def test_a_full_pool_spills_by_setting():
    yard = segregated(segregate_when_full="spill")
    reply, outcomes = yard.show(*(long(n) for n in "abcde"))
    assert [p.worker for p in reply.plans] == [*["prefill-0"] * 4, "decode-0"]
    assert reasons(outcomes)[-1] == ("segregate", "prefill", "decode")
    reply, _ = yard.show(*(long(n) for n in "fghi"))
    assert [(w.request_id, w.reason) for w in reply.waits] == [("i", "no_prefill_room")]


@pytest.mark.parametrize("settings", [{}, {"segregate_when_full": "spill"}])
def test_aggregated_engines_take_what_a_full_pool_cannot(settings: dict[str, str]):
    yard = segregated(*PAIR, ("aggregated-0", "aggregated"), **settings)
    reply, _ = yard.show(*(long(n) for n in "abcde"), short("f"))
    assert [p.worker for p in reply.plans] == [
        *["prefill-0"] * 4,
        "aggregated-0",
        "decode-0",
    ]


def test_a_pool_without_a_living_engine_is_stood_in_for():
    reply, outcomes = segregated(("decode-0", "decode")).show(long("a"), short("b"))
    assert [p.worker for p in reply.plans] == ["decode-0", "decode-0"]
    assert reasons(outcomes)[0] == ("segregate", "prefill", "decode")
    reply, _ = segregated(("aggregated-0", "aggregated")).show(long("a"), short("b"))
    assert [p.worker for p in reply.plans] == ["aggregated-0", "aggregated-0"]


def test_an_engine_that_takes_nothing_is_not_there():
    yard = segregated()
    yard.report(load("prefill-0", "prefill", accepting=False))
    reply, _ = yard.show(long("a"))
    assert [p.worker for p in reply.plans] == ["decode-0"]


def test_engines_may_be_kept_to_their_class():
    workers = (("decode-0", "decode"),)
    for when_full in ("wait", "spill"):
        kept: dict[str, Any] = {"any_engine_may_do_both": False, "segregate_when_full": when_full}
        reply, _ = segregated(*workers, **kept).show(long("a"), short("b"))
        assert [p.request_id for p in reply.plans] == ["b"]
        assert [w.reason for w in reply.waits] == ["no_fresh_worker"]


def test_nobody_at_all_is_said():
    yard = segregated()
    yard.core.on_tick(9.0)
    reply, _ = yard.show(long("a"))
    assert [w.reason for w in reply.waits] == ["no_worker"]


def test_pools_take_turns_independently():
    reply, _ = segregated(*TWO_EACH).show(long("a"), short("b"), long("c"), short("d"))
    assert [p.worker for p in reply.plans] == ["prefill-0", "decode-0", "prefill-1", "decode-1"]
    # ... also when every engine is as loaded as the others.
    yard = segregated(*TWO_EACH)
    served = []
    for number in range(4):
        request = (long, short)[number % 2](f"r{number}")
        reply, _ = yard.show(request)
        served += [p.worker for p in reply.plans]
        yard.ended(f"r{number}", served[-1])
    assert served == ["prefill-0", "decode-0", "prefill-1", "decode-1"]
