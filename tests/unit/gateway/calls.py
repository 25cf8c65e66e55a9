"""Calls as clients write them, and what becomes of them at a model with given features."""

import json
from typing import Any

import pytest

from components.gateway.abilities import fitted
from components.gateway.errors import ApiError
from components.gateway.openai_requests import Call, parse_chat, parse_completion
from components.gateway.rendering import Model
from schemas.fleet import Feature, ModelCard

HELLO = [{"role": "user", "content": "hello"}]
ALL: tuple[Feature, ...] = (
    "structured_outputs",
    "tools",
    "reasoning",
    "prompt_logprobs",
    "logit_bias",
    "min_p",
)
TOOL = {"type": "function", "function": {"name": "tracks"}}


def chat(**fields: Any) -> Call:
    return parse_chat(json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def completion(**fields: Any) -> Call:
    return parse_completion(json.dumps({"model": "m", "prompt": "hello"} | fields).encode())


def at(call: Call, *features: Feature) -> Call:
    """The call as an engine with these features gets it."""
    card = ModelCard(model="m", created_s=1, context_tokens_max=1000, features=features)
    return fitted(call, Model.from_card(card))


def refusal(parse: Any, *given: Any, **fields: Any) -> tuple[int, str, str | None]:
    """Status, code and parameter of the refusal that must come."""
    with pytest.raises(ApiError) as caught:
        parse(*given, **fields)
    error = caught.value
    assert error.content["error"].keys() == {"message", "type", "param", "code"}
    return error.status, error.code, error.param
