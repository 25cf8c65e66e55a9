"""What a call needs, held against what its model's engine can do."""

import json
from typing import Any, get_args

import pytest

from components.domain.words import model_card
from components.gateway.abilities import fitted
from components.gateway.rendering import Model
from schemas.fleet import Feature
from tests.unit.gateway.calls import ALL, HELLO, TOOL, at, chat, completion, refusal

NEEDS: list[tuple[Feature, Any, str, Any]] = [
    ("tools", chat, "tools", [TOOL]),
    ("structured_outputs", chat, "response_format", {"type": "json_object"}),
    ("structured_outputs", completion, "structured_outputs", {"regex": "a"}),
    ("structured_outputs", completion, "guided_choice", ["a"]),
    ("logit_bias", chat, "logit_bias", {"5": 1}),
    ("min_p", completion, "min_p", 0.1),
    ("prompt_logprobs", chat, "prompt_logprobs", 0),
]


@pytest.mark.parametrize(("feature", "parse", "field", "value"), NEEDS)
def test_what_an_engine_cannot_do_is_refused_by_name(feature, parse, field, value):
    call = parse(**{field: value})
    others = [f for f in ALL if f != feature]
    assert refusal(at, call, *others) == (400, "unsupported_parameter", field)
    assert at(call, feature).sampling.model_copy(update={"parsing": None}) == call.sampling


def test_echoed_logprobs_are_refused_under_the_name_that_asks_for_them():
    call = completion(echo=True, logprobs=1)
    assert refusal(at, call) == (400, "unsupported_parameter", "logprobs")
    assert at(call, "prompt_logprobs") == call


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logit_bias": {}, "min_p": 0, "response_format": {"type": "text"}},
        {"tools": [], "tool_choice": "none", "include_reasoning": False},
    ],
)
def test_a_call_that_needs_nothing_is_the_same_at_an_engine_without_features(fields):
    call = chat(**fields)
    assert at(call) is call
    assert call.sampling == chat().sampling


def test_only_what_needs_parsers_is_parsed():
    no_parsers: tuple[Feature, ...] = tuple(f for f in ALL if f != "reasoning")
    assert at(chat(), *no_parsers).sampling.parsing is None
    assert at(completion(), *ALL).sampling.parsing is None
    reasoned = at(chat(), "reasoning").sampling.parsing
    assert reasoned is not None
    assert (reasoned.tools, reasoned.tool_choice, reasoned.reasoning) == ("", "none", True)


def test_reasoning_is_kept_apart_even_when_it_is_not_to_be_shown():
    call = at(chat(include_reasoning=False), "reasoning")
    assert not call.include_reasoning
    assert call.sampling.parsing is not None
    assert call.sampling.parsing.reasoning


def test_an_engine_that_renders_chats_gets_the_messages_as_they_were_checked():
    parts = [{"type": "text", "text": "é", "cache_control": 1}]
    call = at(chat(messages=[{"role": "developer", "content": parts}, *HELLO]), "renders")
    assert json.loads(call.sampling.chat) == [
        {"role": "developer", "content": [{"type": "text", "text": "é"}]},
        *HELLO,
    ]
    assert at(completion(), "renders").sampling.chat == ""


def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused():
    card = model_card("sim/words", created_s=1, context_tokens_max=100)
    model = Model.from_card(card.model_copy(update={"features": ("logit_bias",)}))
    last = model.vocabulary_size - 1
    assert fitted(chat(logit_bias={str(last): 1}), model).sampling.logit_bias == ((last, 1.0),)
    call = chat(logit_bias={str(last + 1): 1})
    assert refusal(fitted, call, model) == (400, "invalid_value", "logit_bias")


def test_every_feature_is_asked_for_somewhere():
    assert {*get_args(Feature)} == {*ALL, "renders"}
