"""The functions that a model may call, and whether it may, must, or must one of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from components.gateway.errors import invalid, unsupported
from components.gateway.openai_fields import ChatFields, missing
from schemas.body import TOOLS_CHARS_MAX

TOOLS_MAX: Final = 128
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tools:
    """``listed`` as templates get it, ``text`` as engines do; ``choice`` as in OutputParsing."""

    listed: tuple[dict[str, Any], ...]
    text: str
    choice: str = "auto"
    parallel: bool = True

    @property
    def forced(self) -> bool:
        """Must there be a call? Then the engine constrains the output by itself."""
        return self.choice not in {"auto", "none"}


def checked_tools(fields: ChatFields) -> Tools | None:
    """None without any. Raises ``ApiError``."""
    if fields.tools is None or fields.tools == []:
        if fields.tool_choice not in (None, "auto", "none"):
            raise invalid("tool_choice", "'tool_choice' needs 'tools' to choose from")
        return None
    if not isinstance(fields.tools, list) or len(fields.tools) > TOOLS_MAX:
        raise invalid("tools", f"'tools' must be a list of up to {TOOLS_MAX} tools", "invalid_type")
    listed = tuple(_tool(f"tools[{place}]", tool) for place, tool in enumerate(fields.tools))
    return Tools(
        listed,
        _as_text(listed),
        _choice(fields.tool_choice, listed),
        parallel=fields.parallel_tool_calls is not False,
    )


def _tool(param: str, tool: Any) -> dict[str, Any]:
    """With every key that vLLM gives to a template: some templates print tools as they are."""
    if not isinstance(tool, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    if tool.get("type", "function") != "function":
        raise unsupported(f"{param}.type")
    function = tool.get("function")
    if function is None:
        raise missing(f"{param}.function")
    if not isinstance(function, dict):
        raise invalid(f"{param}.function", f"'{param}.function' must be an object", "invalid_type")
    found = {
        "name": _name(f"{param}.function.name", function.get("name")),
        "description": _optional(f"{param}.function", function, "description", str, "a string"),
        "parameters": _optional(f"{param}.function", function, "parameters", dict, "an object"),
    }
    strict = _optional(f"{param}.function", function, "strict", bool, "true or false")
    if strict is not None:
        found["strict"] = strict
    return {"type": "function", "function": found}


def _name(param: str, name: Any) -> str:
    if isinstance(name, str) and NAME.fullmatch(name):
        return name
    raise invalid(param, f"'{param}' must be 1 to 64 letters, digits, '_' or '-'")


def _optional(param: str, function: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    value = function.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise invalid(f"{param}.{name}", f"'{param}.{name}' must be {what}", "invalid_type")


def _as_text(listed: Sequence[Mapping[str, Any]]) -> str:
    """JSON, without what was left out: not every engine takes a null for that."""
    given = [
        {**tool, "function": {n: v for n, v in tool["function"].items() if v is not None}}
        for tool in listed
    ]
    try:
        text = orjson.dumps(given).decode()
    except orjson.JSONEncodeError:
        raise invalid("tools", "'tools' is nested too deeply") from None
    if len(text) > TOOLS_CHARS_MAX:
        raise invalid("tools", f"'tools' has more than {TOOLS_CHARS_MAX} characters of JSON")
    return text


def _choice(choice: Any, listed: Sequence[Mapping[str, Any]]) -> str:
    """``none``, ``auto``, ``required``, or ``=name``."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice in {"none", "auto", "required"}:
            return choice
        what = "'tool_choice' must be 'none', 'auto', 'required' or an object that names a function"
        raise invalid("tool_choice", what)
    if not isinstance(choice, dict):
        raise invalid("tool_choice", "'tool_choice' must be a string or an object", "invalid_type")
    if choice.get("type", "function") != "function":
        raise unsupported("tool_choice.type")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not any(tool["function"]["name"] == name for tool in listed):
        raise invalid("tool_choice", "'tool_choice' names none of the functions in 'tools'")
    return f"={name}"
