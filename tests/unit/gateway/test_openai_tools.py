"""Tools and the choice among them: what is taken, what is refused, and within which bounds."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.gateway.openai_tools import Tools
from schemas.body import TOOLS_CHARS_MAX
from tests.unit.gateway.calls import TOOL, at, chat, refusal

SCHEMA = {"type": "object", "properties": {"yard": {"type": "string"}}}
NAMED = {"type": "function", "function": {"name": "tracks"}}


def taken(**fields: Any) -> Tools:
    tools = chat(**{"tools": [TOOL]} | fields).tools
    assert tools is not None
    return tools


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


def test_templates_see_every_key_and_engines_only_what_was_said():
    tools = taken(tools=[tool(), tool(description="d", parameters=SCHEMA, strict=True, more=1)])
    bare, full = (t["function"] for t in tools.listed)
    assert bare == {"name": "f", "description": None, "parameters": None}
    assert full == {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
    assert json.loads(tools.text) == [tool(), {"type": "function", "function": full}]


@pytest.mark.parametrize(
    ("choice", "found"),
    [(None, "auto"), ("auto", "auto"), ("none", "none"), ("required", "required")],
)
def test_a_choice_is_auto_unless_it_is_said(choice, found):
    assert taken(tool_choice=choice).choice == found


def test_a_choice_may_name_a_function():
    tools = taken(tool_choice=NAMED)
    assert (tools.choice, tools.forced) == ("=tracks", True)


def test_calls_in_parallel_may_be_switched_off():
    assert taken().parallel
    assert not taken(parallel_tool_calls=False).parallel
    assert refusal(chat, parallel_tool_calls="no")[2] == "parallel_tool_calls"


def test_the_worker_hears_of_the_tools_what_its_parser_needs():
    parsing = at(chat(tools=[TOOL], tool_choice=NAMED), "tools").sampling.parsing
    assert parsing is not None
    assert (parsing.tool_choice, parsing.parallel_tool_calls) == ("=tracks", True)
    assert json.loads(parsing.tools) == [TOOL]
    assert not parsing.reasoning


@pytest.mark.parametrize(
    ("tools", "code", "param"),
    [
        ("x", "invalid_type", "tools"),
        ({"0": TOOL}, "invalid_type", "tools"),
        ([TOOL] * 129, "invalid_type", "tools"),
        ([1], "invalid_type", "tools[0]"),
        ([TOOL, {"type": "custom"}], "unsupported_parameter", "tools[1].type"),
        ([{"type": "function"}], "missing_required_parameter", "tools[0].function"),
        ([{"type": "function", "function": "f"}], "invalid_type", "tools[0].function"),
        ([tool(name=None)], "invalid_value", "tools[0].function.name"),
        ([tool(description=7)], "invalid_type", "tools[0].function.description"),
        ([tool(parameters=[])], "invalid_type", "tools[0].function.parameters"),
        ([tool(strict=1)], "invalid_type", "tools[0].function.strict"),
        ([tool(description="x" * TOOLS_CHARS_MAX)], "invalid_value", "tools"),
    ],
)
def test_a_wrong_tool_is_named_by_its_place(tools, code, param):
    assert refusal(chat, tools=tools) == (400, code, param)


def test_a_schema_that_is_nested_too_deeply_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"properties": deep}
    assert refusal(chat, tools=[tool(parameters=deep)]) == (400, "invalid_value", "tools")


@pytest.mark.parametrize(
    ("choice", "code", "param"),
    [
        ("any", "invalid_value", "tool_choice"),
        (7, "invalid_type", "tool_choice"),
        ({"type": "function"}, "invalid_value", "tool_choice"),
        ({"type": "function", "function": {"name": "other"}}, "invalid_value", "tool_choice"),
        ({"type": "allowed_tools"}, "unsupported_parameter", "tool_choice.type"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(choice, code, param):
    assert refusal(chat, tools=[TOOL], tool_choice=choice) == (400, code, param)


@pytest.mark.parametrize("choice", ["required", NAMED, ["auto"]])
def test_without_tools_there_is_nothing_to_choose(choice):
    assert refusal(chat, tool_choice=choice) == (400, "invalid_value", "tool_choice")
    assert refusal(chat, tools=[], tool_choice=choice) == (400, "invalid_value", "tool_choice")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_be_made_leaves_no_room_for_another_format(choice):
    format_ = {"type": "json_object"}
    found = refusal(chat, tools=[TOOL], tool_choice=choice, response_format=format_)
    assert found == (400, "invalid_value", "tool_choice")
    assert chat(tools=[TOOL], response_format=format_).sampling.structured is not None


@given(st.text(max_size=70))
def test_names_are_short_and_plain(name):
    if re.fullmatch("[A-Za-z0-9_-]{1,64}", name):
        assert taken(tools=[tool(name=name)]).listed[0]["function"]["name"] == name
    else:
        assert refusal(chat, tools=[tool(name=name)])[2] == "tools[0].function.name"
