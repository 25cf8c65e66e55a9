"""The messages of a chat and the prompts of a completion: checked, in OpenAI's own shape.

A checked message has only keys that we know, in the order in which vLLM hands them to templates.
How a template wants them is ``rendering``'s business.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from components.gateway.errors import invalid, unsupported
from components.gateway.openai_fields import TOKEN_ID_MAX, missing

Prompt = str | list[int]
Message = dict[str, Any]

PROMPTS_MAX: Final = 16
NAME_MAX: Final = 64
CALLS_MAX: Final = 128
CALL_ID_MAX: Final = 256

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_UNSUPPORTED: Final = ("function_call", "audio")
#: Kinds of parts that are text, and where the text stands.
_TEXT_PARTS: Final[Mapping[str, str]] = {"text": "text", "refusal": "refusal"}


def checked_message(place: int, message: Any) -> Message:
    """One message: role, content (text, list of parts of text, or None), and what its role has.

    An assistant may bring ``tool_calls`` (arguments are text) and ``reasoning``, and needs no
    content then; a tool answers one ``tool_call_id``.
    """
    param = f"messages[{place}]"
    if not isinstance(message, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    role: Any = message.get("role")
    if role == "function":
        raise unsupported(f"{param}.role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{param}.role", f"'{param}.role' must be one of {', '.join(_ROLES)}")
    for name in _UNSUPPORTED:
        if message.get(name):
            raise unsupported(f"{param}.{name}")
    more = _MORE[role](param, message) if role in _MORE else {}
    found: Message = {"role": role}
    found["content"] = _content(param, message.get("content"), needed=not more or role == "tool")
    found |= more
    speaker = message.get("name")
    if speaker is not None:
        found["name"] = _text(f"{param}.name", speaker, NAME_MAX, "invalid_value")
    return found


def _of_assistant(param: str, message: Mapping[str, Any]) -> Message:
    more: Message = {}
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list) or len(calls) > CALLS_MAX:
            what = f"'{param}.tool_calls' must be a list of up to {CALLS_MAX} calls"
            raise invalid(f"{param}.tool_calls", what, "invalid_type")
        more["tool_calls"] = [
            _tool_call(f"{param}.tool_calls[{i}]", call) for i, call in enumerate(calls)
        ]
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")  # what vLLM called it before
    if reasoning is not None:
        more["reasoning"] = _text(f"{param}.reasoning", reasoning)
    return more


def _of_tool(param: str, message: Mapping[str, Any]) -> Message:
    where = f"{param}.tool_call_id"
    if message.get("tool_call_id") is None:
        raise missing(where)
    return {"tool_call_id": _text(where, message["tool_call_id"], CALL_ID_MAX)}


#: What messages of a role may have besides content and name.
_MORE: Final[Mapping[str, Callable[[str, Mapping[str, Any]], Message]]] = {
    "assistant": _of_assistant,
    "tool": _of_tool,
}


def _tool_call(param: str, call: Any) -> Message:
    """An earlier call; its name is not held to the rule for tools, a model may have made it up."""
    if not isinstance(call, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    if call.get("type", "function") != "function":
        raise unsupported(f"{param}.type")
    function = call.get("function")
    if not isinstance(function, dict):
        raise invalid(f"{param}.function", f"'{param}.function' must be an object", "invalid_type")
    arguments = function.get("arguments")
    return {
        "id": _text(f"{param}.id", call.get("id"), CALL_ID_MAX),
        "function": {
            "arguments": ""
            if arguments is None
            else _text(f"{param}.function.arguments", arguments),
            "name": _text(f"{param}.function.name", function.get("name"), CALL_ID_MAX),
        },
        "type": "function",
    }


def _text(param: str, value: Any, chars_max: int | None = None, code: str = "invalid_type") -> str:
    if isinstance(value, str) and (chars_max is None or len(value) <= chars_max):
        return value
    length = "" if chars_max is None else f" of up to {chars_max} characters"
    raise invalid(param, f"'{param}' must be a string{length}", code)


def _content(param: str, content: Any, *, needed: bool) -> str | list[Message] | None:
    if isinstance(content, str):
        return content
    if content is None:
        if needed:
            raise missing(f"{param}.content")
        return None
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise invalid(
            f"{param}.content",
            f"'{param}.content' must be a string or a list of parts",
            "invalid_type",
        )
    return [_part(f"{param}.content[{place}]", part) for place, part in enumerate(content)]


def _part(param: str, part: Mapping[str, Any]) -> Message:
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise unsupported(f"{param}.type")
    name = _TEXT_PARTS[kind]
    return {"type": "text", "text": _text(f"{param}.{name}", part.get(name))}


def chars_of(message: Message) -> int:
    """How many characters it will add to a prompt, about."""
    content = message["content"] or ""
    chars = len(content) if isinstance(content, str) else sum(len(p["text"]) for p in content)
    for call in message.get("tool_calls", ()):
        chars += len(call["function"]["arguments"])
    return chars


def checked_prompts(prompt: Any) -> tuple[Prompt, ...]:
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
