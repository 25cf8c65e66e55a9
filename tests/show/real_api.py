"""Tools and structured output from a real engine, asked for by the official client."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any, Final

import openai

from tests.show.proof import Figure, Run
from tests.show.real import RealFleet, apart

Client = openai.OpenAI

TOOL: Final[Any] = {
    "type": "function",
    "function": {
        "name": "set_switch",
        "description": "Set a switch of the yard.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "track": {"type": "string", "enum": ["north", "south", "siding"]},
                "open": {"type": "boolean"},
            },
            "required": ["track", "open"],
            "additionalProperties": False,
        },
    },
}
#: The same, and nobody insists on its schema: then calls are not constrained, only found.
LAX_TOOL: Final[Any] = {**TOOL, "function": {**TOOL["function"], "strict": False}}
SCHEMA: Final[Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "free": {"type": "boolean"},
        "kind": {"type": "string", "enum": ["main", "side"]},
    },
    "required": ["name", "free", "kind"],
    "additionalProperties": False,
}
MESSAGES: Final[Any] = [{"role": "user", "content": "Which track is free?"}]
#: A random model knows no end: what is constrained ends by its grammar.
GREEDY: Final[Any] = {"temperature": 0, "max_completion_tokens": 400}


async def tools_and_schemas(run: Run) -> Figure:
    """Each call whole and streamed, and both the same."""
    good: list[str] = []
    bad: list[str] = []
    async with apart(run, worker_tool_parser="hermes") as fleet:
        name = await fleet.model_name()
        await asyncio.to_thread(_ask_all, fleet, name, good, bad)
    text = f"{len(good)} of {len(good) + len(bad)} calls as asked for"
    return Figure(text + (f"; not: {'; '.join(bad)}" if bad else ""), not bad)


def _ask_all(fleet: RealFleet, name: str, good: list[str], bad: list[str]) -> None:
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0) as client:
        for what, call in CALLS.items():
            try:
                wrong = call(client, name)
            except (openai.APIError, ValueError, KeyError, IndexError, TypeError) as error:
                wrong = f"{type(error).__name__}: {str(error)[:120]}"
            (bad if wrong else good).append(f"{what}: {wrong}" if wrong else what)


def _named_tool(client: Client, name: str) -> str:
    choice: Any = {"type": "function", "function": {"name": "set_switch"}}
    return _tool_call(client, name, choice)


def _required_tool(client: Client, name: str) -> str:
    return _tool_call(client, name, "required")


def _tool_call(client: Client, name: str, choice: Any) -> str:
    """What is wrong with the call that the model was made to make; empty when nothing is."""
    asked = {"model": name, "messages": MESSAGES, "tools": [TOOL], "tool_choice": choice, **GREEDY}
    whole = client.chat.completions.create(**asked)
    calls = whole.choices[0].message.tool_calls or []
    if not calls:
        return f"no tool call, finish {whole.choices[0].finish_reason}"
    function, arguments = calls[0].function.name, calls[0].function.arguments
    wrong = "" if function == "set_switch" else f"called {function}"
    wrong = wrong or _wrong_arguments(json.loads(arguments))
    streamed_name = streamed = ""
    for chunk in client.chat.completions.create(stream=True, **asked):
        for piece in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            if piece.index == 0 and piece.function:
                streamed_name += piece.function.name or ""
                streamed += piece.function.arguments or ""
    same = streamed_name == function and json.loads(streamed) == json.loads(arguments)
    return wrong or ("" if same else f"streamed {streamed_name}({streamed})")


def _wrong_arguments(arguments: dict[str, Any]) -> str:
    fits = (
        set(arguments) == {"track", "open"}
        and arguments["track"] in {"north", "south", "siding"}
        and isinstance(arguments["open"], bool)
    )
    return "" if fits else f"arguments {arguments}"


def _tool_in_a_text(client: Client, name: str) -> str:
    """The model writes a call by itself (made to by a pattern): the parser finds it in the text."""
    call = '<tool_call>{"name": "set_switch", "arguments": {"track": "north", "open": true}}'
    answer = client.chat.completions.create(
        model=name,
        messages=MESSAGES,
        tools=[LAX_TOOL],
        extra_body={"structured_outputs": {"choice": [f"{call}</tool_call>"]}},
        **GREEDY,
    )
    calls = answer.choices[0].message.tool_calls or []
    if answer.choices[0].finish_reason != "tool_calls" or not calls:
        return f"finish {answer.choices[0].finish_reason}: {answer.choices[0].message.content!r}"
    return _wrong_arguments(json.loads(calls[0].function.arguments))


def _json_schema(client: Client, name: str) -> str:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "track", "schema": SCHEMA, "strict": True},
    }
    asked = {"model": name, "messages": MESSAGES, "response_format": form, **GREEDY}
    text = client.chat.completions.create(**asked).choices[0].message.content or ""
    found = json.loads(text)
    fits = (
        set(found) == {"name", "free", "kind"}
        and len(found["name"]) <= 8
        and isinstance(found["free"], bool)
        and found["kind"] in {"main", "side"}
    )
    chunks = client.chat.completions.create(stream=True, **asked)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return "" if fits and streamed == text else f"{text!r}, streamed {streamed!r}"


def _pattern(client: Client, name: str) -> str:
    answer = client.completions.create(
        model=name,
        prompt="Which track? ",
        max_tokens=40,
        temperature=0,
        extra_body={"structured_outputs": {"regex": "track [1-9] is (free|taken)"}},
    )
    text = answer.choices[0].text
    return "" if re.fullmatch("track [1-9] is (free|taken)", text) else repr(text)


def _bad_schema(client: Client, name: str) -> str:
    """A schema that no grammar can be made of: 400, and the engine lives."""
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "none", "schema": {"type": "no such type"}},
    }
    try:
        client.chat.completions.create(
            model=name, messages=MESSAGES, response_format=form, **GREEDY
        )
    except openai.BadRequestError as error:
        return "" if error.param == "response_format" else f"blames {error.param}"
    return "taken"


CALLS: Final[dict[str, Callable[[Client, str], str]]] = {
    "a named tool": _named_tool,
    "a required tool": _required_tool,
    "a tool call found in the text": _tool_in_a_text,
    "a JSON schema": _json_schema,
    "a pattern": _pattern,
    "a bad schema": _bad_schema,
}
