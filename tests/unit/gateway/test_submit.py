"""From a call to the requests that the fleet runs."""

from dataclasses import replace
from typing import Any

import pytest

from components.domain.bodies import decode_body
from components.domain.pages import page_hashes, unpack_hashes
from components.gateway.errors import ApiError
from components.gateway.openai_requests import Call
from components.gateway.submit import Origin, new_requests, request_ids, response_id
from schemas.body import SamplingParameters
from schemas.examples import TRACEPARENT
from schemas.fleet import ModelCard

CARD = ModelCard(model="m", created_s=1, context_tokens_max=100, eos_token_ids=(2,))
ORIGIN = Origin("gateway-7", salt=99, trace=TRACEPARENT, arrived_s=5.0, budget_ms=60_000)
PROMPT = list(range(40))


def call(max_tokens: int | None = 10, **sampling: Any) -> Call:
    return Call("completions", "m", SamplingParameters(**sampling), max_tokens)


def test_a_request_carries_all_that_the_control_path_needs_and_no_content():
    [new] = new_requests(call(n=2, seed=7), CARD, "abc", [PROMPT], ORIGIN)
    card = new.card
    assert (card.request_id, card.attempt, card.gateway, card.model) == (
        "req-abc",
        1,
        "gateway-7",
        "m",
    )
    assert (card.prompt_tokens, card.output_tokens_max, card.choices) == (40, 10, 2)
    assert card.output_tokens_given
    assert (card.budget_ms, card.body_bytes) == (60_000, len(new.body))
    assert unpack_hashes(card.page_hashes) == page_hashes(PROMPT, 99)
    assert card.traceparent == TRACEPARENT
    body = decode_body(new.body)
    assert list(body.prompt_token_ids) == PROMPT
    assert (body.sampling.max_tokens, body.sampling.n, body.sampling.seed) == (10, 2, 7)


def test_the_tenant_goes_into_the_card():
    [new] = new_requests(call(), CARD, "abc", [PROMPT], replace(ORIGIN, tenant="acme"))
    assert new.card.tenant == "acme"


def test_several_prompts_are_numbered():
    assert request_ids("abc", 1) == ["req-abc"]
    assert request_ids("abc", 2) == ["req-abc-0", "req-abc-1"]
    assert response_id("chat", "abc") == "chatcmpl-abc"


def test_without_a_limit_the_rest_of_the_context_may_be_written():
    [new] = new_requests(call(max_tokens=None), CARD, "abc", [PROMPT], ORIGIN)
    assert (new.card.output_tokens_max, new.card.output_tokens_given) == (60, False)


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "fits"),
    [(40, 60, True), (40, 61, False), (99, None, True), (100, None, False), (100, 1, False)],
)
def test_prompt_and_answer_fit_into_the_context_together(prompt_tokens, max_tokens, fits):
    prompts = [[1] * prompt_tokens]
    if fits:
        assert new_requests(call(max_tokens), CARD, "abc", prompts, ORIGIN)
        return
    with pytest.raises(ApiError) as caught:
        new_requests(call(max_tokens), CARD, "abc", prompts, ORIGIN)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_an_empty_prompt_is_refused():
    with pytest.raises(ApiError):
        new_requests(call(), CARD, "abc", [[]], ORIGIN)


def test_more_minimum_tokens_than_fit_are_refused():
    with pytest.raises(ApiError) as caught:
        new_requests(call(max_tokens=None, min_tokens=61), CARD, "abc", [PROMPT], ORIGIN)
    assert caught.value.param == "min_tokens"


def test_which_tokens_end_a_choice():
    def ends(**sampling: Any) -> frozenset[int]:
        return new_requests(call(**sampling), CARD, "abc", [PROMPT], ORIGIN)[0].end_token_ids

    assert ends() == {2}
    assert ends(stop_token_ids=(5,)) == {2, 5}
    assert ends(stop_token_ids=(5,), ignore_eos=True) == {5}
