"""What clients ask for, OpenAI's way: bytes in, a checked `Call` out, or an `ApiError`.

Every field has a type and a bound. A parameter that we know and cannot honour is refused by name
unless its value asks for nothing (a null, an empty list); a field that we do not know is ignored
and counted. Nothing here trusts what it reads: JSON is parsed by orjson, which refuses NaN and
bombs of nesting, and texts of errors are written here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.gateway.errors import ApiError, invalid, shown, unsupported
from schemas.body import SamplingParameters

Api = Literal["chat", "completions"]
Prompt = str | list[int]

CHOICES_MAX: Final = 8
PROMPTS_MAX: Final = 16
MESSAGES_MAX: Final = 2048
NAME_MAX: Final = 64
STOPS_MAX: Final = 16
STOP_BYTES_MAX: Final = 256
STOP_TOKENS_MAX: Final = 64
LOGPROBS_MAX: Final = 20
TOKENS_MAX: Final = 2**31 - 1
TOKEN_ID_MAX: Final = 2**32 - 1

_Tokens = Annotated[int, Field(ge=1, le=TOKENS_MAX)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Known = TypeVar("_Known", bound="_Fields")


class _Strict(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )


class _StreamOptions(_Strict):
    include_usage: bool | None = None


class _Fields(_Strict):
    """What both calls have in common. None means the default, as clients send null."""

    model: str = Field(min_length=1, max_length=256)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    max_tokens: _Tokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=TOKENS_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=TOKENS_MAX)] | None = None
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


class _ChatFields(_Fields):
    messages: Annotated[list[Any], Field(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=LOGPROBS_MAX)] | None = None


class _CompletionFields(_Fields):
    prompt: Any
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=LOGPROBS_MAX)] | None = None


#: Parameters that we know and cannot honour, with the values besides null that ask for nothing.
_UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
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
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_p": (0,),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
_UNSUPPORTED_IN_CHAT: Final = {**_UNSUPPORTED, "echo": (False,)}
#: Such parameters inside ``stream_options``.
_UNSUPPORTED_STREAM_OPTIONS: Final[Mapping[str, tuple[Any, ...]]] = {
    "continuous_usage_stats": (False,)
}
_ROLES: Final = {
    "system": "system",
    "developer": "system",  # templates know the older name
    "user": "user",
    "assistant": "assistant",
}
_UNSUPPORTED_IN_MESSAGES: Final = ("tool_calls", "function_call", "tool_call_id", "audio")


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is right as far as can be told without its model.

    Chat has ``messages`` (role and text each), completions ``prompts``. ``max_tokens`` None: as
    many as fit. ``sampling.max_tokens`` counts only once that is decided. ``ignored`` counts fields
    that nobody here knows.
    """

    api: Api
    model: str
    sampling: SamplingParameters
    max_tokens: int | None
    stream: bool = False
    include_usage: bool = False
    messages: tuple[dict[str, str], ...] = ()
    prompts: tuple[Prompt, ...] = ()
    echo: bool = False
    ignored: int = 0


def parse_chat(body: bytes) -> Call:
    """A chat completion; raises ``ApiError``."""
    data = _json_object(body)
    fields = _checked(_ChatFields, data)
    _refuse_unsupported(data, _UNSUPPORTED_IN_CHAT)
    both = (fields.max_tokens, fields.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise invalid("max_tokens", "'max_tokens' and 'max_completion_tokens' differ: send one")
    if fields.top_logprobs and not fields.logprobs:
        raise invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    max_tokens = fields.max_completion_tokens or fields.max_tokens
    return Call(
        api="chat",
        messages=tuple(_message(i, m) for i, m in enumerate(fields.messages)),
        sampling=_sampling(fields, logprobs, max_tokens),
        max_tokens=max_tokens,
        **_common(fields, data),
    )


def parse_completion(body: bytes) -> Call:
    """A text completion; raises ``ApiError``."""
    data = _json_object(body)
    fields = _checked(_CompletionFields, data)
    _refuse_unsupported(data, _UNSUPPORTED)
    if fields.best_of not in {None, fields.n or 1}:
        raise unsupported("best_of")
    if fields.echo and fields.logprobs is not None:
        raise unsupported("logprobs")  # of the prompt, which is what echo adds
    max_tokens = fields.max_tokens or SamplingParameters().max_tokens
    return Call(
        api="completions",
        prompts=_prompts(fields.prompt),
        echo=bool(fields.echo),
        sampling=_sampling(fields, fields.logprobs, max_tokens),
        max_tokens=max_tokens,
        **_common(fields, data),
    )


PARSERS: Final[Mapping[Api, Callable[[bytes], Call]]] = {
    "chat": parse_chat,
    "completions": parse_completion,
}


def _common(fields: _Fields, data: Mapping[str, Any]) -> dict[str, Any]:
    options = fields.stream_options
    if options is not None and not fields.stream:
        raise invalid("stream_options", "'stream_options' is allowed only when 'stream' is true")
    return {
        "model": fields.model,
        "stream": bool(fields.stream),
        "include_usage": bool(options and options.include_usage),
        "ignored": len(data.keys() - type(fields).model_fields.keys() - _UNSUPPORTED.keys()),
    }


def _sampling(fields: _Fields, logprobs: int | None, max_tokens: int | None) -> SamplingParameters:
    min_tokens = fields.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise invalid("min_tokens", "'min_tokens' is larger than 'max_tokens'")
    given: dict[str, Any] = {
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "top_k": fields.top_k,
        "seed": fields.seed,
        "n": fields.n,
        "ignore_eos": fields.ignore_eos,
        "presence_penalty": fields.presence_penalty,
        "frequency_penalty": fields.frequency_penalty,
        "repetition_penalty": fields.repetition_penalty,
    }
    return SamplingParameters(
        min_tokens=min_tokens,
        stop=_stops(fields.stop),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        logprobs=logprobs,
        max_tokens=max_tokens or TOKENS_MAX,
        **{name: value for name, value in given.items() if value is not None},
    )


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise invalid("stop", "'stop' must be a string or a list of strings", "invalid_type")
    if len(stops) > STOPS_MAX:
        raise invalid("stop", f"'stop' has more than {STOPS_MAX} texts")
    if not all(0 < len(s.encode()) <= STOP_BYTES_MAX for s in stops):
        raise invalid("stop", f"a text of 'stop' must have 1 to {STOP_BYTES_MAX} bytes")
    return tuple(stops)


def _message(place: int, message: Any) -> dict[str, str]:
    """Role, text and name; parts of text are joined by line ends."""
    param = f"messages[{place}]"
    if not isinstance(message, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    role: Any = message.get("role")
    if role in ("tool", "function"):
        raise unsupported(f"{param}.role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{param}.role", f"'{param}.role' must be one of {', '.join(_ROLES)}")
    for name in _UNSUPPORTED_IN_MESSAGES:
        if message.get(name):
            raise unsupported(f"{param}.{name}")
    checked = {"role": _ROLES[role], "content": _text(param, message.get("content"))}
    speaker = message.get("name")
    if speaker is not None:
        if not isinstance(speaker, str) or len(speaker) > NAME_MAX:
            what = f"'{param}.name' must be a string of up to {NAME_MAX} characters"
            raise invalid(f"{param}.name", what)
        checked["name"] = speaker
    return checked


def _text(param: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise invalid(
            f"{param}.content", f"'{param}.content' is missing", "missing_required_parameter"
        )
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise invalid(
            f"{param}.content",
            f"'{param}.content' must be a string or a list of parts",
            "invalid_type",
        )
    texts = []
    for place, part in enumerate(content):
        if part.get("type") != "text":
            raise unsupported(f"{param}.content[{place}].type")
        text = part.get("text")
        if not isinstance(text, str):
            where = f"{param}.content[{place}].text"
            raise invalid(where, f"'{where}' must be a string", "invalid_type")
        texts.append(text)
    return "\n".join(texts)


def _prompts(prompt: Any) -> tuple[Prompt, ...]:
    """One prompt per request: a text, token ids, or a list of either."""
    prompts = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt
    if not isinstance(prompts, list) or not prompts:
        raise invalid(
            "prompt", "'prompt' must be a text, a list of texts, or token ids", "invalid_type"
        )
    if len(prompts) > PROMPTS_MAX:
        raise invalid("prompt", f"'prompt' has more than {PROMPTS_MAX} prompts")
    if not (all(isinstance(p, str) for p in prompts) or all(_is_ids(p) for p in prompts)):
        raise invalid(
            "prompt",
            f"token ids in 'prompt' must be whole numbers from 0 to {TOKEN_ID_MAX}",
            "invalid_type",
        )
    return tuple(prompts)


def _is_ids(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(type(i) is int and 0 <= i <= TOKEN_ID_MAX for i in prompt)
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid(None, "The request body is not valid JSON", "invalid_json") from None
    if not isinstance(data, dict):
        raise invalid(None, "The request body must be a JSON object", "invalid_type")
    return data


def _checked(fields: type[_Known], data: dict[str, Any]) -> _Known:
    try:
        return fields.model_validate(data)
    except ValidationError as error:
        raise _of_validation(error) from None


def _of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong. pydantic's sentence states the rule, never the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for step in first["loc"]:
        param += f"[{step}]" if isinstance(step, int) else f".{step}" if param else step
    param = shown(param)
    if first["type"] == "missing":
        return invalid(
            param, f"Missing required parameter: '{param}'", "missing_required_parameter"
        )
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return invalid(param, f"Invalid value for '{param}': {first['msg']}", code)


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
    options = data.get("stream_options")
    if not prefix and isinstance(options, dict):
        _refuse_unsupported(options, _UNSUPPORTED_STREAM_OPTIONS, "stream_options.")
