"""A real vLLM keeps to constraints, and what it writes comes apart into calls, reasoning, content.

The model is random: whatever has a form here has it because vLLM was made to keep to it.
"""

import json
import re
from typing import Any

import pytest
import pytest_asyncio

from components.worker.engine import JobRejected
from schemas.body import OutputParsing, StructuredOutput
from tests.engine.engines import WITHIN_S, bytes_of, job, running_engine
from tests.support.nats import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = bytes_of("The yard is quiet at night, and every track is free.")
#: The first constraint waits for a process that imports torch.
FIRST_S = 60.0

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo", "Lima"]},
        "tracks": {"type": "integer", "minimum": 1, "maximum": 99},
        "open": {"type": "boolean"},
    },
    "required": ["city", "tracks", "open"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "route", "strict": True, "parameters": SCHEMA}},
    {
        "type": "function",
        "function": {
            "name": "hold",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"minutes": {"enum": [1, 5, 10]}},
                "required": ["minutes"],
                "additionalProperties": False,
            },
        },
    },
]
#: The same, and nobody insists on their schemas: then vLLM adds no constraint of its own.
LAX_TOOLS = [
    {"type": "function", "function": {**tool["function"], "strict": None}} for tool in TOOLS
]
#: Two calls between content, as Hermes writes them; which city and which minutes are up to it.
CALLS = (
    r'So <tool_call>\{"name": "route", "arguments": \{"city": "(Rome|Oslo)"\}\}</tool_call>'
    r'<tool_call>\{"name": "hold", "arguments": \{"minutes": (1|5)\}\}</tool_call>'
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def odd_outputs():
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tiny_model, odd_outputs):
    parsing = {"tool_parser": "hermes", "on_odd_output": odd_outputs.append, "grammar_cpu_s": 0.5}
    config = {"backend": "xgrammar", "disable_any_whitespace": True}
    async with running_engine(tiny_model, parsing=parsing, structured_outputs_config=config) as (
        engine,
        sink,
    ):
        yield engine, sink


@pytest.fixture
def engine(yard):
    return yard[0]


@pytest.fixture
def sink(yard):
    yard[1].__init__()
    return yard[1]


def constrained(kind, value=""):
    value = value if isinstance(value, str) else json.dumps(value)
    return {"structured": StructuredOutput(kind=kind, value=value)}


def calling(choice, tools=TOOLS, **more):
    listed = json.dumps(tools) if tools else ""
    return {"parsing": OutputParsing(tools=listed, tool_choice=choice, **more)}


async def ended(sink, name="r1", choice=0):
    await until(lambda: sink.finish(name, choice) or sink.events, f"the end of {name}", FIRST_S)
    assert not sink.events


async def run(engine, sink, name="r1", **given):
    given = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": False, **given}
    engine.submit(job(name, **given))
    for choice in range(given.get("n", 1)):
        await ended(sink, name, choice)
    return sink.text(name)


async def rejected(engine, sink, name="r1", **given):
    engine.submit(job(name, prompt=PROMPT, **given))
    await until(lambda: bool(sink.events), f"the refusal of {name}", FIRST_S)
    [event] = sink.events
    sink.events.clear()
    assert isinstance(event, JobRejected)
    assert not engine._jobs
    return event.param


def bomb(name):
    """A schema that costs seconds to compile, three times what the engine here may spend on it."""
    inner = {f"p{i}": {"type": "string", "pattern": "[a-z]{1,50}"} for i in range(20)}
    outer = {f"{name}{i}": {"type": "object", "properties": inner} for i in range(50)}
    return {"type": "object", "properties": outer}


def whole(entries):
    """What a client makes of the deltas: (content, reasoning, calls)."""
    content, reasoning = "", ""
    calls: dict[int, dict[str, str]] = {}
    for entry in entries:
        for delta in entry[6]["deltas"]:
            content += delta.get("content", "")
            reasoning += delta.get("reasoning", "")
            for said in delta.get("tool_calls", ()):
                call = calls.setdefault(said["index"], {"arguments": ""})
                call |= {key: said[key] for key in ("id", "type") if key in said}
                function = said["function"]
                call |= {"name": function["name"]} if "name" in function else {}
                call["arguments"] += function.get("arguments", "")
    return content, reasoning, calls


def fits(arguments, name="route"):
    """Does it satisfy the schema of that function?"""
    if name == "hold":
        return list(arguments) == ["minutes"] and arguments["minutes"] in {1, 5, 10}
    return (
        sorted(arguments) == ["city", "open", "tracks"]
        and arguments["city"] in {"Rome", "Oslo", "Lima"}
        and isinstance(arguments["open"], bool)
        and 1 <= arguments["tracks"] <= 99
    )


async def goes_on_at_every_cut(engine, sink, ids, **given):
    """Every continuation says exactly what the first attempt said behind the cut."""
    before = [e for e in sink.of("r1") if e[4]]
    said = before[-1][6] is not None and "deltas" in before[-1][6]
    for place in range(1, len(before)):
        cut, name = before[place][3], f"after-{before[place][3]}"
        emitted = {0: (ids[:cut], False)}
        # The names of calls follow from the request's: the same one, in its next attempt.
        attempt = {"request_id": "r1" if said else name, "attempt": 1 + cut}
        given_now = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": False, **given}
        engine.submit(job(**attempt, emitted=emitted, **given_now))
        await until(
            lambda: any(e[1] == 1 + cut and e[7] for e in sink.entries) or sink.events,  # noqa: B023
            f"the end of {name}",
            WITHIN_S,
        )
        assert not sink.events
        after = [e for e in sink.entries if e[1] == 1 + cut]
        assert [*ids[:cut], *(i for e in after for i in e[4])] == ids
        assert "".join(e[5] for e in (*before[:place], *after)) == "".join(e[5] for e in before)
        assert after[-1][7][:2] == before[-1][7][:2]
        if said:
            assert whole([*before[:place], *after]) == whole(before)


# Constraints


async def test_the_card_says_what_it_can(engine):
    features = engine.model_card().features
    assert set(features) == {
        "structured_outputs", "prompt_logprobs", "logit_bias", "min_p", "tools",
    }  # fmt: skip


async def test_a_schema_is_kept_to_at_any_temperature_and_in_every_choice(engine, sink):
    await run(engine, sink, n=3, temperature=1.5, seed=3, **constrained("json", SCHEMA))
    texts = [sink.text("r1", choice) for choice in range(3)]
    assert all(fits(json.loads(text)) for text in texts)
    assert [sink.finish("r1", choice)[0] for choice in range(3)] == ["stop"] * 3


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("regex", r"[a-f]{8}-(left|right)", r"[a-f]{8}-(left|right)"),
        ("choice", ["night", "day"], "night|day"),
        ("grammar", 'root ::= "a" ("b" | "c")+ "d"', "a(b|c)+d?"),
        ("json", SCHEMA, r"\{.*\}"),
    ],
)
async def test_it_goes_on_with_a_constraint_at_every_cut(engine, sink, kind, value, expected):
    given = {"max_tokens": 40, **constrained(kind, value)}
    text = await run(engine, sink, **given)
    assert re.fullmatch(expected, text)
    await goes_on_at_every_cut(engine, sink, sink.ids(), **given)


async def test_any_json_object_will_do(engine, sink):
    text = await run(
        engine, sink, temperature=1.0, seed=1, max_tokens=40, **constrained("json_object")
    )
    assert text.startswith("{")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (constrained("json", '{"type": "no such type"}'), "response_format"),
        (constrained("json", '{"type": '), "response_format"),
        (constrained("json", '{"a":' * 3000 + "1" + "}" * 3000), "response_format"),
        (constrained("regex", "(unclosed"), "structured_outputs"),
        (constrained("regex", "(" * 3000 + "a" + ")" * 3000), "structured_outputs"),
        (constrained("choice", "5"), "structured_outputs"),
        (constrained("choice", "[]"), "structured_outputs"),
        (constrained("grammar", "root ::= nothing"), "structured_outputs"),
        (constrained("structural_tag", "{}"), "structured_outputs"),
        (constrained("json", bomb("once")), "response_format"),
        (calling("auto", tools=[{"type": "function"}]), "tools"),
        (calling("=nobody"), "tools"),
        ({"logit_bias": ((5000, 1.0),)}, "logit_bias"),
        ({"prompt_logprobs": 20, "n": 100}, "prompt_logprobs"),
    ],
)
async def test_what_no_vllm_can_honour_is_rejected_and_it_lives_on(engine, sink, given, param):
    assert await rejected(engine, sink, **given) == param
    text = await run(engine, sink, "well", **constrained("choice", ["night", "day"]))
    assert text in {"night", "day"}


async def test_the_same_bomb_is_refused_at_once_the_second_time(engine, sink):
    given = constrained("json", bomb("again"))
    await rejected(engine, sink, **given)
    engine.submit(job(prompt=PROMPT, **given))
    await until(lambda: bool(sink.events), "the refusal", 0.5)


async def test_an_abort_frees_a_constrained_job_in_whatever_state(engine, sink):
    rehearsals = engine._backend._rehearsals
    slow = constrained("json", bomb("abort"))
    for moment, given in (
        ("at once", constrained("regex", "[a-f]{300}")),
        ("while it is rehearsed", slow),
        ("while it runs", constrained("regex", "[a-f]{301}")),
    ):
        engine.submit(job(prompt=PROMPT, max_tokens=900, **given))
        if moment == "while it is rehearsed":
            await until(lambda: rehearsals._waiting == 1, moment, WITHIN_S)
        if moment == "while it runs":
            await until(lambda: len(sink.ids()) > 5, moment, WITHIN_S)
        engine.abort(("r1", 1))
        await until(lambda: not rehearsals._waiting, "its turn", WITHIN_S)
    llm = engine._backend._llm
    await until(lambda: not llm.output_processor.request_states, "nothing left", WITHIN_S)
    assert await engine.reset_prefix_cache()


# Calls


@pytest.mark.parametrize("choice", ["=route", "required"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_demanded_call_comes_and_fits_its_schema(engine, sink, choice, seed):
    given = {"temperature": 1.0, "seed": seed, **calling(choice, parallel_tool_calls=False)}
    await run(engine, sink, **given)
    content, _, calls = whole(sink.of())
    assert content == ""
    [call] = calls.values()
    assert call["name"] in ({"route"} if choice == "=route" else {"route", "hold"})
    assert fits(json.loads(call["arguments"]), call["name"])
    assert call["id"]
    assert call["type"] == "function"
    assert sink.finish()[0] == ("stop" if choice == "=route" else "tool_calls")


@pytest.mark.parametrize("choice", ["=hold", "required"])
async def test_it_goes_on_with_a_demanded_call_at_every_cut(engine, sink, choice):
    given = calling(choice, parallel_tool_calls=False)
    await run(engine, sink, **given)
    await goes_on_at_every_cut(engine, sink, sink.ids(), **given)


async def test_calls_that_the_model_chose_to_make_come_apart_from_the_content(engine, sink):
    given = {**calling("auto", LAX_TOOLS), **constrained("regex", CALLS)}
    text = await run(engine, sink, **given)
    assert re.fullmatch(CALLS, text)
    content, reasoning, calls = whole(sink.of())
    assert (content, reasoning) == ("So ", "")
    assert [calls[i]["name"] for i in (0, 1)] == ["route", "hold"]
    assert json.loads(calls[0]["arguments"])["city"] in {"Rome", "Oslo"}
    assert json.loads(calls[1]["arguments"])["minutes"] in {1, 5}
    assert sink.finish()[0] == "tool_calls"
    await goes_on_at_every_cut(engine, sink, sink.ids(), **given)


async def test_where_calls_are_forbidden_they_are_content(engine, sink):
    text = await run(engine, sink, **calling("none"), **constrained("regex", CALLS))
    content, _, calls = whole(sink.of())
    assert (content, calls) == (text, {})
    assert sink.finish()[0] == "stop"


async def test_only_one_call_where_they_may_not_be_parallel(engine, sink):
    given = {**calling("auto", LAX_TOOLS, parallel_tool_calls=False), **constrained("regex", CALLS)}
    await run(engine, sink, **given)
    _, _, calls = whole(sink.of())
    assert list(calls) == [0]


async def test_an_output_that_a_parser_cannot_read_is_content(
    engine, sink, odd_outputs, monkeypatch
):
    from vllm.tool_parsers.hermes_tool_parser import (  # type: ignore[import-not-found]  # noqa: PLC0415
        Hermes2ProToolParser,
    )

    reads = Hermes2ProToolParser.extract_tool_calls_streaming

    def stumbles(self, previous, current, *more):
        if "<tool_call>" in current:
            raise KeyError("odd")
        return reads(self, previous, current, *more)

    monkeypatch.setattr(Hermes2ProToolParser, "extract_tool_calls_streaming", stumbles)
    text = await run(engine, sink, **calling("auto", LAX_TOOLS), **constrained("regex", CALLS))
    content, _, calls = whole(sink.of())
    assert calls == {}
    assert content.startswith("So ")
    assert text.endswith(content[-20:])
    assert [type(error) for error in odd_outputs] == [KeyError]


# The other features


async def test_prompt_logprobs_come_with_the_first_entry(engine, sink):
    await run(engine, sink, prompt_logprobs=2, max_tokens=3, ignore_eos=True)
    first, *others = sink.of()
    nobody, *rows = first[6]["prompt_logprobs"]
    assert nobody is None
    assert [row[0][0] for row in rows] == PROMPT[1:]
    assert all(len(row) == 3 and row[1][1] >= row[2][1] for row in rows)
    assert [row[0][2] for row in rows[:3]] == ["h", "e", " "]
    assert all(entry[6] is None for entry in others)


async def test_a_continuation_does_not_say_prompt_logprobs_again(engine, sink):
    given = {"prompt_logprobs": 1, "max_tokens": 4, "ignore_eos": True}
    await run(engine, sink, emitted={0: (PROMPT[:2], False)}, **given)
    assert all(entry[6] is None for entry in sink.of())


async def test_a_bias_decides_and_adds_to_what_penalties_leave(engine, sink):
    [a, b] = bytes_of("ab")
    given = {"max_tokens": 4, "ignore_eos": True}
    await run(engine, sink, logit_bias=((a, 100.0),), **given)
    assert sink.ids() == [a] * 4
    # Both are likelier than all else; the penalties on what was emitted tell them apart.
    biases = ((a, 60.0), (b, 59.0))
    await run(engine, sink, "plain", logit_bias=biases, **given)
    given["max_tokens"] = 44
    emitted = {0: ([a] * 40, False)}
    fine = {"frequency_penalty": 2.0}
    await run(engine, sink, "fined", logit_bias=biases, emitted=emitted, **fine, **given)
    assert b in sink.ids("fined")


async def test_min_p_leaves_only_the_likeliest(engine, sink):
    greedy = await run(engine, sink, max_tokens=12, ignore_eos=True)
    given = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.0, "seed": 5}
    assert await run(engine, sink, "narrow", min_p=1.0, **given) == greedy
    assert await run(engine, sink, "wide", **given) != greedy
