"""What clients ask for, OpenAI's way: bytes in, a checked `Call` out, or an `ApiError`.

Every field has a type and a bound. Nothing here trusts what it reads: JSON is parsed by orjson,
which refuses NaN and bombs of nesting, and texts of errors are written here. What an engine needs
a feature for is named in `Call.needs`; whether the model's engine has it, `abilities` asks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from components.gateway.errors import invalid, unsupported
from components.gateway.openai_constraints import checked_bias, checked_constraint
from components.gateway.openai_fields import (
    STOP_BYTES_MAX,
    STOPS_MAX,
    TOKENS_MAX,
    ChatFields,
    CompletionFields,
    Fields,
    checked,
)
from components.gateway.openai_messages import (
    Message,
    Prompt,
    chars_of,
    checked_message,
    checked_prompts,
)
from components.gateway.openai_tools import Tools, checked_tools
from schemas.body import SamplingParameters
from schemas.fleet import Feature

Api = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class Need:
    """A feature that the model's engine must have, and the field that asks for it."""

    feature: Feature
    param: str


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is right as far as can be told without its model.

    Chat has ``messages`` (as in ``openai_messages``), completions ``prompts``. ``max_tokens`` None:
    as many as fit. ``sampling.max_tokens`` counts only once that is decided. ``prompt_only``: the
    one token that is computed is not shown. ``prompt_logprobs``: they are to be shown as such, and
    not only in front of the others. ``ignored`` counts fields that nobody here knows.
    """

    api: Api
    model: str
    sampling: SamplingParameters
    max_tokens: int | None
    stream: bool = False
    include_usage: bool = False
    messages: tuple[Message, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    echo: bool = False
    ignored: int = 0
    tools: Tools | None = None
    include_reasoning: bool = True
    prompt_only: bool = False
    prompt_logprobs: bool = False
    needs: tuple[Need, ...] = ()

    @property
    def text_chars(self) -> int:
        """About how much there is to render and to tokenise."""
        chars = len(self.tools.text) if self.tools else 0
        chars += sum(len(p) for p in self.prompts if isinstance(p, str))
        return chars + sum(map(chars_of, self.messages))

    @property
    def names(self) -> dict[str, str]:
        """The client's words for what ``SamplingParameters`` or an engine may call otherwise."""
        asked = next((n.param for n in self.needs if n.feature == "structured_outputs"), None)
        names = {"parsing": "tools", "chat": "messages"}
        constraint = ("structured", "structured_outputs", "response_format")
        return names | (dict.fromkeys(constraint, asked) if asked else {})


def parse_chat(body: bytes) -> Call:
    """A chat completion; raises ``ApiError``."""
    fields, ignored = checked(ChatFields, body)
    both = (fields.max_tokens, fields.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise invalid("max_tokens", "'max_tokens' and 'max_completion_tokens' differ: send one")
    if fields.top_logprobs and not fields.logprobs:
        raise invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    max_tokens = fields.max_completion_tokens or fields.max_tokens
    messages = tuple(checked_message(i, m) for i, m in enumerate(fields.messages))
    tools = checked_tools(fields)
    needs = [Need("tools", "tools")] if tools else []
    needs += [
        Need("tools", param) for param in map(_of_tools, range(len(messages)), messages) if param
    ]
    sampling = _sampling(fields, needs, logprobs, fields.prompt_logprobs, max_tokens)
    if tools and tools.forced and sampling.structured:
        raise invalid("tool_choice", "a call that must be made leaves no room for another format")
    return Call(
        api="chat",
        messages=messages,
        sampling=sampling,
        max_tokens=max_tokens,
        tools=tools,
        include_reasoning=fields.include_reasoning is not False,
        **_common(fields, ignored),
        needs=tuple(needs),
    )


def parse_completion(body: bytes) -> Call:
    """A text completion; raises ``ApiError``."""
    fields, ignored = checked(CompletionFields, body)
    if fields.best_of not in {None, fields.n or 1}:
        raise unsupported("best_of")
    prompt_only = fields.max_tokens == 0
    if prompt_only and not fields.echo:
        raise invalid("max_tokens", "'max_tokens' may be 0 only together with 'echo'")
    max_tokens = fields.max_tokens or (1 if prompt_only else SamplingParameters().max_tokens)
    prompt_logprobs = fields.prompt_logprobs
    needs = []
    if fields.echo and fields.logprobs is not None:
        needs.append(Need("prompt_logprobs", "logprobs"))
        prompt_logprobs = fields.logprobs if prompt_logprobs is None else prompt_logprobs
    return Call(
        api="completions",
        prompts=checked_prompts(fields.prompt),
        echo=bool(fields.echo),
        sampling=_sampling(fields, needs, fields.logprobs, prompt_logprobs, max_tokens),
        max_tokens=max_tokens,
        prompt_only=prompt_only,
        **_common(fields, ignored),
        needs=tuple(needs),
    )


PARSERS: Final[Mapping[Api, Callable[[bytes], Call]]] = {
    "chat": parse_chat,
    "completions": parse_completion,
}


def _of_tools(place: int, message: Message) -> str | None:
    """What of a message only a model with tools can mean."""
    if message["role"] == "tool":
        return f"messages[{place}].role"
    return f"messages[{place}].tool_calls" if "tool_calls" in message else None


def _common(fields: Fields, ignored: int) -> dict[str, Any]:
    options = fields.stream_options
    if options is not None and not fields.stream:
        raise invalid("stream_options", "'stream_options' is allowed only when 'stream' is true")
    if fields.prompt_logprobs is not None and fields.stream:
        # As in vLLM, whose chunks have no place for them.
        raise invalid("prompt_logprobs", "'prompt_logprobs' needs 'stream' to be false")
    return {
        "model": fields.model,
        "stream": bool(fields.stream),
        "include_usage": bool(options and options.include_usage),
        "prompt_logprobs": fields.prompt_logprobs is not None,
        "ignored": ignored,
    }


def _sampling(
    fields: Fields,
    needs: list[Need],
    logprobs: int | None,
    prompt_logprobs: int | None,
    max_tokens: int | None,
) -> SamplingParameters:
    """How tokens are chosen; adds to ``needs`` what not every engine can do."""
    min_tokens = fields.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise invalid("min_tokens", "'min_tokens' is larger than 'max_tokens'")
    given: dict[str, Any] = {
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "top_k": fields.top_k,
        "min_p": fields.min_p,
        "seed": fields.seed,
        "n": fields.n,
        "ignore_eos": fields.ignore_eos,
        "presence_penalty": fields.presence_penalty,
        "frequency_penalty": fields.frequency_penalty,
        "repetition_penalty": fields.repetition_penalty,
        "prompt_logprobs": prompt_logprobs,
    }
    if fields.prompt_logprobs is not None:
        needs.append(Need("prompt_logprobs", "prompt_logprobs"))
    if fields.min_p:
        needs.append(Need("min_p", "min_p"))
    constraint = checked_constraint(fields)
    if constraint is not None:
        given["structured"] = constraint[0]
        needs.append(Need("structured_outputs", constraint[1]))
    if fields.logit_bias:
        given["logit_bias"] = checked_bias(fields.logit_bias)
        needs.append(Need("logit_bias", "logit_bias"))
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
