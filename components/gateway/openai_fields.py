"""The fields of both calls: which there are, of what type, within which bounds. No meaning yet.

What has a shape of its own (messages, tools, constraints) is only named here and checked by its own
file. A parameter that we know and cannot honour is refused by name unless its value asks for
nothing; a field that we do not know is ignored and counted.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.gateway.errors import ApiError, invalid, shown, unsupported

CHOICES_MAX: Final = 8
MESSAGES_MAX: Final = 2048
STOPS_MAX: Final = 16
STOP_BYTES_MAX: Final = 256
STOP_TOKENS_MAX: Final = 64
LOGPROBS_MAX: Final = 20
TOKENS_MAX: Final = 2**31 - 1
TOKEN_ID_MAX: Final = 2**32 - 1

_Tokens = Annotated[int, Field(ge=1, le=TOKENS_MAX)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Logprobs = Annotated[int, Field(ge=0, le=LOGPROBS_MAX)]
_Known = TypeVar("_Known", bound="Fields")


class _Strict(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )


class _StreamOptions(_Strict):
    include_usage: bool | None = None


class Fields(_Strict):
    """What both calls have in common. None means the default, as clients send null."""

    model: str = Field(min_length=1, max_length=256)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=TOKENS_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Any = None
    stop_token_ids: (
        Annotated[
            list[Annotated[int, Field(ge=0, le=TOKEN_ID_MAX)]], Field(max_length=STOP_TOKENS_MAX)
        ]
        | None
    ) = None
    ignore_eos: bool | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None
    logit_bias: Any = None
    prompt_logprobs: _Logprobs | None = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json_object: Any = None


class ChatFields(Fields):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Any], Field(min_length=1, max_length=MESSAGES_MAX)]
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: _Logprobs | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None


class CompletionFields(Fields):
    """``/v1/completions``. No tokens at all may be asked for together with ``echo``."""

    prompt: Any
    max_tokens: Annotated[int, Field(ge=0, le=TOKENS_MAX)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: _Logprobs | None = None


#: Parameters that we know and cannot honour, with the values besides null that ask for nothing.
_UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "store": (False,),
    "suffix": ("",),
    # vLLM's
    "add_generation_prompt": (True,),
    "add_special_tokens": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "cache_salt": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_embeds": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
_OF_ONE_CALL: Final[Mapping[type[Fields], Mapping[str, tuple[Any, ...]]]] = {
    ChatFields: {**_UNSUPPORTED, "echo": (False,)},
    CompletionFields: {**_UNSUPPORTED, "tools": ([],), "tool_choice": ("none", "auto")},
}
#: Such parameters inside ``stream_options``.
_UNSUPPORTED_STREAM_OPTIONS: Final[Mapping[str, tuple[Any, ...]]] = {
    "continuous_usage_stats": (False,)
}


def checked(kind: type[_Known], body: bytes) -> tuple[_Known, int]:
    """The fields, and how many others there were that nobody here knows. Raises ``ApiError``."""
    data = _json_object(body)
    table = _OF_ONE_CALL[kind]
    try:
        fields = kind.model_validate(data)
    except ValidationError as error:
        raise _of_validation(error) from None
    _refuse_unsupported(data, table)
    options = data.get("stream_options")
    if isinstance(options, dict):
        _refuse_unsupported(options, _UNSUPPORTED_STREAM_OPTIONS, "stream_options.")
    return fields, len(data.keys() - kind.model_fields.keys() - table.keys())


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid(None, "The request body is not valid JSON", "invalid_json") from None
    if not isinstance(data, dict):
        raise invalid(None, "The request body must be a JSON object", "invalid_type")
    return data


def _of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong. pydantic's sentence states the rule, never the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for step in first["loc"]:
        param += f"[{step}]" if isinstance(step, int) else f".{step}" if param else step
    param = shown(param)
    if first["type"] == "missing":
        return missing(param)
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return invalid(param, f"Invalid value for '{param}': {first['msg']}", code)


def missing(param: str) -> ApiError:
    """A field that has no default is not there."""
    return invalid(param, f"Missing required parameter: '{param}'", "missing_required_parameter")


def _refuse_unsupported(
    data: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]], prefix: str = ""
) -> None:
    for name in data.keys() & table.keys():
        value = data[name]
        # True == 1 in Python, and a flag is no number.
        if value is not None and not any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
            for neutral in table[name]
        ):
            raise unsupported(prefix + name)
