"""What a call needs, held against what the model's engine can do (`ModelCard.features`). Pure."""

from dataclasses import replace
from typing import Any

import orjson

from components.gateway.errors import unsupported
from components.gateway.openai_requests import Call
from components.gateway.rendering import Model
from schemas.body import OutputParsing


def fitted(call: Call, model: Model) -> Call:
    """The call as this engine gets it: parsed where it has parsers, with the chat where it renders.

    Raises ``ApiError``, naming the field, for what it cannot do. Without any feature, or use of
    one, it is the same call.
    """
    features = model.card.features
    for need in call.needs:
        if need.feature not in features:
            raise unsupported(need.param)
    if call.sampling.logit_bias and model.card.tokenizer_json:
        model.check_ids([token_id for token_id, _ in call.sampling.logit_bias], "logit_bias")
    if call.api != "chat" or not features:
        return call
    more: dict[str, Any] = {}
    if call.tools is not None or "reasoning" in features:
        more["parsing"] = _parsing(call, reasoning="reasoning" in features)
    if "renders" in features:
        more["chat"] = orjson.dumps(call.messages).decode()
    return replace(call, sampling=call.sampling.model_copy(update=more)) if more else call


def _parsing(call: Call, *, reasoning: bool) -> OutputParsing:
    """Reasoning is kept apart even when it is not to be shown: then it is dropped here."""
    tools = call.tools
    if tools is None:
        return OutputParsing(tool_choice="none", reasoning=reasoning)
    return OutputParsing(
        tools=tools.text,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.parallel,
        reasoning=reasoning,
    )
