"""What the server is asked for one choice: path and JSON body. Pure.

With a tokenizer the prompt goes as ids and stop texts are not the server's business. Without one
the ids of a job are the bytes of a text (or of a chat that only the server can render), and the
server searches for stop texts itself.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import orjson

from components.worker.openai_http.choices import Choice
from components.worker.openai_http.faults import RequestBad
from components.worker.openai_http.settings import Dialect
from schemas.body import OutputParsing, SamplingParameters, StructuredOutput

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"

#: Tools stay: a template writes them into the prompt.
_NOT_FOR_PREFILL: Final = frozenset(
    [
        "stream_options",
        "stop",
        "stop_token_ids",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "seed",
        "response_format",
        "structured_outputs",
        "tool_choice",
        "parallel_tool_calls",
    ]
)

Body = dict[str, Any]


def request_of(model: str, dialect: Dialect, choice: Choice, *, as_ids: bool) -> tuple[str, Body]:
    """Path and body of a streamed request. Raises ``RequestBad``.

    Prompt logprobs come only in one piece: such a request is not streamed.
    """
    sampling = choice.sampling
    chat = "" if as_ids else sampling.chat
    body: Body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= _messages(sampling) if chat else {"prompt": _prompt(choice, as_ids=as_ids)}
    body["max_tokens"] = choice.tokens_max
    body |= _sampling(choice)
    if dialect == "vllm":
        body |= _sampling_of_vllm(choice, as_ids=as_ids)
    body |= _logprobs(sampling, is_chat=bool(chat), as_ids=as_ids)
    if not as_ids and sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.structured is not None:
        body |= _structured(sampling.structured, dialect)
    if body.get("prompt_logprobs") is not None:
        body["stream"] = False
        del body["stream_options"]
    return (CHAT if chat else COMPLETIONS), body


def as_prefill(body: Mapping[str, Any]) -> Body:
    """The same request for a server that only computes the prompt: one token, in one piece.

    That one must come whatever it is: a minimum of more would contradict it, and what shapes,
    stops or describes the output has no meaning.
    """
    rewritten = {name: value for name, value in body.items() if name not in _NOT_FOR_PREFILL}
    rewritten |= {"stream": False, "max_tokens": 1}
    if "max_completion_tokens" in rewritten:
        rewritten["max_completion_tokens"] = 1
    if rewritten.get("min_tokens"):
        rewritten["min_tokens"] = 1
    if rewritten.get("n"):
        rewritten["n"] = 1
    return rewritten


def _prompt(choice: Choice, *, as_ids: bool) -> list[int] | str:
    if as_ids:
        return list(choice.prompt)
    try:
        return bytes(choice.prompt).decode()
    except ValueError as error:
        raise RequestBad("prompt", "without a tokenizer a prompt is UTF-8 text") from error


def _messages(sampling: SamplingParameters) -> Body:
    try:
        body: Body = {"messages": orjson.loads(sampling.chat)}
        if sampling.parsing is not None:
            body |= _tools(sampling.parsing)
    except orjson.JSONDecodeError as error:
        raise RequestBad("messages", "no JSON") from error
    return body


def _tools(parsing: OutputParsing) -> Body:
    if not parsing.tools:
        return {}
    name = parsing.tool_choice
    named = {"type": "function", "function": {"name": name[1:]}}
    return {
        "tools": orjson.loads(parsing.tools),
        "tool_choice": named if name.startswith("=") else name,
        "parallel_tool_calls": parsing.parallel_tool_calls,
    }


def _sampling(choice: Choice) -> Body:
    """What OpenAI knows. What a continuation has emitted counts for penalties (see ``_bias``)."""
    sampling = choice.sampling
    body: Body = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.presence_penalty:
        body["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        body["frequency_penalty"] = sampling.frequency_penalty
    if choice.seed is not None:
        body["seed"] = choice.seed
    if bias := _bias(choice):
        body["logit_bias"] = bias
    return body


def _bias(choice: Choice) -> dict[str, float]:
    """The request's own, and a fine for ids that a continuation has emitted.

    Those are part of the prompt now and would escape penalties on output. With a frequency penalty
    the fine is exact; a presence penalty is paid twice by an id on both sides of the seam.
    """
    sampling = choice.sampling
    bias = dict(sampling.logit_bias)
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    if presence or frequency:
        for token_id, times in Counter(choice.emitted).items():
            bias[token_id] = bias.get(token_id, 0.0) - presence - frequency * times
    return {str(token_id): value for token_id, value in bias.items()}


def _sampling_of_vllm(choice: Choice, *, as_ids: bool) -> Body:
    """Said even where it is the default: a server may have defaults of its own."""
    sampling = choice.sampling
    body: Body = {
        "top_k": max(0, sampling.top_k),
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": choice.tokens_min,
        "ignore_eos": sampling.ignore_eos,
        "return_token_ids": True,
    }
    if sampling.stop_token_ids:
        body["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.prompt_logprobs is not None and not choice.emitted:
        body["prompt_logprobs"] = sampling.prompt_logprobs
    if as_ids and choice.salt is not None:
        body["cache_salt"] = choice.salt
    return body


def _logprobs(sampling: SamplingParameters, *, is_chat: bool, as_ids: bool) -> Body:
    if sampling.logprobs is None:
        return {}
    if is_chat:
        return {"logprobs": True, "top_logprobs": sampling.logprobs}
    body: Body = {"logprobs": sampling.logprobs}
    if as_ids:  # two ids may have one text, and OpenAI's layout names tokens by text
        body["return_tokens_as_token_ids"] = True
    return body


def _structured(wanted: StructuredOutput, dialect: Dialect) -> Body:
    try:
        if dialect == "vllm":
            return {"structured_outputs": {wanted.kind: _constraint(wanted)}}
        if wanted.kind == "json_object":
            return {"response_format": {"type": "json_object"}}
        if wanted.kind == "json":
            schema = {"name": "output", "schema": orjson.loads(wanted.value)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
    except orjson.JSONDecodeError as error:
        raise RequestBad("response_format", "no JSON") from error
    raise RequestBad("response_format", f"the server knows no {wanted.kind}")


def _constraint(wanted: StructuredOutput) -> object:
    match wanted.kind:
        case "json_object":
            return True
        case "json" | "choice":
            return orjson.loads(wanted.value)
        case _:
            return wanted.value
