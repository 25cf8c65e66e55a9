"""A real vLLM with a parser for reasoning: it is kept apart, and constraints begin behind it.

The tiny model never stops reasoning by itself, so its end is part of what was emitted, or of a
constraint that holds from the start.
"""

import json
import re
from dataclasses import replace

import pytest
import pytest_asyncio

from components.host.errors import CannotStart
from components.worker.vllm.loading import VllmModel, load_async_llm
from schemas.body import OutputParsing
from tests.engine.engines import bytes_of, running_engine
from tests.engine.test_parsing import PROMPT, calling, constrained, goes_on_at_every_cut, run, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

THINK, END = 264, 265
REASONING = {"parsing": OutputParsing(tool_choice="none")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tiny_model):
    parsing = {"reasoning_parser": "deepseek_r1"}
    async with running_engine(tiny_model, parsing=parsing) as (engine, sink):
        yield engine, sink


@pytest.fixture
def engine(yard):
    return yard[0]


@pytest.fixture
def sink(yard):
    yard[1].__init__()
    return yard[1]


async def test_the_card_says_reasoning_and_no_tools(engine):
    assert "reasoning" in engine.model_card().features
    assert "tools" not in engine.model_card().features


async def test_what_comes_before_its_end_is_reasoning(engine, sink):
    emitted = {0: ([THINK, *bytes_of("hm")], False)}
    await run(engine, sink, emitted=emitted, max_tokens=20, ignore_eos=True, **REASONING)
    content, reasoning, _ = whole(sink.of())
    assert content == ""
    assert reasoning == sink.text()
    # Its end is near when nothing else is likely.
    given = {"max_tokens": 12, "ignore_eos": True, "logit_bias": ((END, 100.0),), **REASONING}
    await run(engine, sink, "over", **given)
    content, reasoning, _ = whole(sink.of("over"))
    assert sink.ids("over")[0] == END
    assert reasoning == ""


@pytest.mark.parametrize("parsing", [REASONING, {}])
async def test_a_constraint_begins_where_the_reasoning_ends(engine, sink, parsing):
    """Also across a seam on either side of that place."""
    given = {"max_tokens": 60, **constrained("regex", "[a-f]{6}(yes|no)"), **parsing}
    thought = [*bytes_of("hm, xyz"), END]
    engine_input = {0: (thought, False)}
    await run(engine, sink, emitted=engine_input, **given)
    answer = sink.text()
    assert re.fullmatch("[a-f]{6}(yes|no)", answer)
    if parsing:
        assert whole(sink.of())[:2] == (answer, "")
    for cut in range(1, len(sink.ids())):
        name, ids = f"after-{cut}", sink.ids()
        await run(engine, sink, name, emitted={0: ([*thought, *ids[:cut]], False)}, **given)
        assert sink.ids(name) == ids[cut:]
    # Before its end nothing is constrained: the random model does not write such a thing.
    free = await run(engine, sink, "free", emitted={0: (thought[:3], False)}, **given)
    assert not re.fullmatch("[a-f]*(yes|no)?", free)


async def test_a_prompt_that_ended_it_is_constrained_from_the_start(engine, sink):
    given = {"max_tokens": 60, **constrained("choice", ["night", "day"]), **REASONING}
    text = await run(engine, sink, prompt=[*PROMPT, THINK, END], **given)
    assert text in {"night", "day"}
    assert whole(sink.of())[:2] == (text, "")


async def test_where_it_is_not_kept_apart_it_is_content(engine, sink):
    parsing = {"parsing": OutputParsing(tool_choice="none", reasoning=False)}
    emitted = {0: ([THINK, *bytes_of("hm")], False)}
    await run(engine, sink, emitted=emitted, max_tokens=5, ignore_eos=True, **parsing)
    assert all(entry[6] is None for entry in sink.of())


async def test_a_demanded_call_needs_no_parser_of_tools(engine, sink):
    """vLLM's constraint makes JSON of it; what was thought before stays apart."""
    schema = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}},
        "required": ["on"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "light", "parameters": schema}}]
    given = {**calling("=light", tools), "prompt": [*PROMPT, THINK, END], "max_tokens": 200}
    # White space between the parts is allowed, and the random model would never stop liking it.
    blanks = tuple((token_id, -100.0) for token_id in range(200, 264))
    await run(engine, sink, logit_bias=blanks, **given)
    _, _, calls = whole(sink.of())
    assert calls[0]["name"] == "light"
    assert isinstance(json.loads(calls[0]["arguments"])["on"], bool)
    assert sink.finish()[0] == "stop"
    await goes_on_at_every_cut(engine, sink, sink.ids(), logit_bias=blanks, **given)


def test_unknown_parsers_are_named_with_those_that_exist(tiny_model):
    model = VllmModel("tiny", str(tiny_model), 1, {}, {})
    with pytest.raises(CannotStart, match=r"tool_parser: 'no-such' is none of .*hermes"):
        load_async_llm(replace(model, tool_parser="no-such"))
    with pytest.raises(CannotStart, match=r"reasoning_parser: 'no-such' is none of .*qwen3"):
        load_async_llm(replace(model, reasoning_parser="no-such"))
