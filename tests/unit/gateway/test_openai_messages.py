"""The messages of a chat: what each role may say, and what is wrong with it, by its place."""

from typing import Any

import pytest

from tests.unit.gateway.calls import HELLO, at, chat, refusal

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def said(**message: Any) -> dict[str, Any]:
    """The one message of a chat as it was taken in."""
    [taken] = chat(messages=[message]).messages
    return taken


def test_a_text_and_parts_of_text_are_kept_as_they_came():
    assert said(role="user", content="a") == {"role": "user", "content": "a"}
    parts = [{"type": "text", "text": "a", "colour": "red"}, {"type": "refusal", "refusal": "no"}]
    assert said(role="developer", content=parts) == {
        "role": "developer",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "no"}],
    }


def test_an_assistant_that_called_needs_no_content():
    taken = said(role="assistant", tool_calls=[CALL], refusal=None, audio=None, name="Ann")
    assert list(taken) == ["role", "content", "tool_calls", "name"]
    assert (taken["content"], taken["tool_calls"]) == (None, [CALL])
    assert said(role="assistant", content="x", tool_calls=[]) == {
        "role": "assistant",
        "content": "x",
    }


def test_a_call_without_arguments_has_empty_ones():
    call = {"id": "c1", "function": {"name": "f", "arguments": None}}
    [taken] = said(role="assistant", tool_calls=[call])["tool_calls"]
    assert taken["function"] == {"name": "f", "arguments": ""}


def test_a_tool_answers_one_call():
    assert said(role="tool", content="4", tool_call_id="c1") == {
        "role": "tool",
        "content": "4",
        "tool_call_id": "c1",
    }


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_of_an_earlier_turn_comes_under_either_name(name):
    assert said(role="assistant", **{name: "hm"}) == {
        "role": "assistant",
        "content": None,
        "reasoning": "hm",
    }


def test_what_a_role_has_no_use_for_is_left_out():
    taken = said(role="user", content="x", tool_calls=[CALL], tool_call_id="c", reasoning="hm")
    assert taken == {"role": "user", "content": "x"}


def test_messages_of_tools_need_a_model_with_tools():
    answer = {"role": "tool", "content": "4", "tool_call_id": "c1"}
    call = {"role": "assistant", "tool_calls": [CALL]}
    for message, param in ((answer, "messages[1].role"), (call, "messages[1].tool_calls")):
        asked = chat(messages=[*HELLO, message])
        assert refusal(at, asked) == (400, "unsupported_parameter", param)
        assert at(asked, "tools") == asked


@pytest.mark.parametrize(
    ("call", "code", "param"),
    [
        ("x", "invalid_type", ""),
        ({**CALL, "type": "custom"}, "unsupported_parameter", ".type"),
        ({**CALL, "id": None}, "invalid_type", ".id"),
        ({**CALL, "id": "c" * 257}, "invalid_type", ".id"),
        ({"id": "c"}, "invalid_type", ".function"),
        ({"id": "c", "function": {"arguments": ""}}, "invalid_type", ".function.name"),
        (
            {"id": "c", "function": {"name": "f", "arguments": {}}},
            "invalid_type",
            ".function.arguments",
        ),
    ],
)
def test_a_wrong_call_is_named_by_its_place(call, code, param):
    message = {"role": "assistant", "tool_calls": [CALL, call]}
    where = "messages[0].tool_calls[1]" + param
    assert refusal(chat, messages=[message]) == (400, code, where)


def test_too_many_calls_are_refused():
    for calls in ([CALL] * 129, {"0": CALL}):
        found = refusal(chat, messages=[{"role": "assistant", "tool_calls": calls}])
        assert found == (400, "invalid_type", "messages[0].tool_calls")


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ("hello", "invalid_type", "messages"),
        ([], "invalid_value", "messages"),
        (HELLO * 2049, "invalid_value", "messages"),
        (["hello"], "invalid_type", "messages[0]"),
        ([{"content": "x"}], "invalid_value", "messages[0].role"),
        ([{"role": "emperor", "content": "x"}], "invalid_value", "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "invalid_value", "messages[0].role"),
        ([{"role": "function", "content": "x"}], "unsupported_parameter", "messages[0].role"),
        (
            [{"role": "tool", "content": "x"}],
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        (
            [{"role": "tool", "content": "x", "tool_call_id": "c" * 257}],
            "invalid_type",
            "messages[0].tool_call_id",
        ),
        (
            [{"role": "tool", "tool_call_id": "c"}],
            "missing_required_parameter",
            "messages[0].content",
        ),
        (
            [{"role": "assistant", "content": None}],
            "missing_required_parameter",
            "messages[0].content",
        ),
        (
            [{"role": "assistant", "content": "x", "reasoning": 7}],
            "invalid_type",
            "messages[0].reasoning",
        ),
        (
            [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
            "unsupported_parameter",
            "messages[0].function_call",
        ),
        ([{"role": "user"}], "missing_required_parameter", "messages[0].content"),
        ([{"role": "user", "content": 7}], "invalid_type", "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "invalid_type", "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "invalid_type",
            "messages[0].content[0].text",
        ),
        ([{"role": "user", "content": "x", "name": 7}], "invalid_value", "messages[0].name"),
    ],
)
def test_a_wrong_message_is_named_by_its_place(messages, code, param):
    assert refusal(chat, messages=messages) == (400, code, param)
