"""vLLM's parsers, driven id by id on texts of models that the tiny one is not."""

import json
from types import SimpleNamespace

import pytest

from components.worker.vllm.backend import Output
from components.worker.vllm.sequences import begin, step_of
from schemas.body import OutputParsing
from tests.engine.engines import job
from tests.engine.test_parsing import LAX_TOOLS, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

EOS = 2
CALL = '<tool_call>{"name": "hold", "arguments": {"minutes": 5}}</tool_call>'
XML = (
    "<tool_call>\n<function=hold>\n<parameter=minutes>\n5\n</parameter>\n</function>\n</tool_call>"
)


@pytest.fixture(scope="module")
def llm(tiny_model):
    from transformers import AutoTokenizer  # type: ignore[import-not-found]  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = SimpleNamespace(model="tiny", hf_config=SimpleNamespace(model_type="llama"))
    config.hf_text_config = config.hf_config
    return SimpleNamespace(get_tokenizer=lambda: tokenizer, model_config=config)


def parsed(llm, parsers, ids, cut=0, bundle=1):
    """The entries of an attempt that begins behind ``cut`` ids; ``bundle`` of them per step."""
    from components.worker.vllm.parsing import Parsing  # noqa: PLC0415

    odd: list[BaseException] = []
    tool_parser, reasoning_parser = parsers
    reading = Parsing(llm, tool_parser, reasoning_parser, odd.append).reading(
        job(
            prompt=[4],
            emitted={0: (ids[:cut], False)},
            max_tokens=2000,
            ignore_eos=False,
            parsing=OutputParsing(tools=json.dumps(LAX_TOOLS) if tool_parser else ""),
        )
    )
    attempt = job(prompt=[4], max_tokens=2000, emitted={0: (ids[:cut], False)})
    choice, finish = begin(attempt, 0, "r1", reading, 2000, (EOS,))
    assert finish is None
    steps = []
    for place in range(cut, len(ids), bundle):
        some = ids[place : place + bundle]
        end = "stop" if place + bundle >= len(ids) else None
        steps.append(step_of(choice, Output(some, None, end, None, 0)))
    assert not odd
    return [(*[None] * 6, {"deltas": step.deltas}, step.finish) for step in steps]


@pytest.mark.parametrize(
    ("level", "choice", "form", "schema"),
    [
        ("auto", "auto", False, False),
        ("auto", "=hold", True, False),
        ("function", "auto", True, False),
        ("parameter", "auto", True, True),
        ("parameter", "required", True, True),
    ],
)
def test_what_calls_keep_to_is_the_operator_s_word(llm, level, choice, form, schema):
    """Of tools that do not say ``strict`` themselves."""
    from components.worker.vllm.parsing import Parsing  # noqa: PLC0415

    parsing = OutputParsing(tools=json.dumps(LAX_TOOLS), tool_choice=choice)
    odd: list[BaseException] = []
    reader = Parsing(llm, "hermes", "", odd.append, level)
    constraint = reader.reading(job(prompt=[4], max_tokens=9, parsing=parsing)).constraint
    assert (constraint is not None) == form
    assert ("minutes" in (constraint.value if constraint else "")) == schema


@pytest.mark.parametrize(
    ("parsers", "text", "expected"),
    [
        (("hermes", ""), f"So {CALL}", ("So ", "", ["hold"])),
        (("hermes", "qwen3"), f"<think>hm</think>So {CALL}", ("So ", "hm", ["hold"])),
        (("hermes", "deepseek_r1"), f"hm</think>{CALL}{CALL}", ("", "hm", ["hold"] * 2)),
        (("qwen3_coder", "qwen3"), f"<think>hm</think>So {XML}", ("So ", "hm", ["hold"])),
        (("", "qwen3"), "<think>hm</think>So < what", ("So < what", "hm", [])),
        (("", "deepseek_r1"), "<think>hm never ends", ("", "hm never ends", [])),
    ],
)
async def test_it_comes_apart_the_same_at_every_cut_and_in_every_bundle(
    llm, parsers, text, expected
):
    ids = [*llm.get_tokenizer().encode(text, add_special_tokens=False), EOS]
    entries = parsed(llm, parsers, ids)
    content, reasoning, calls = whole(entries)
    assert (content, reasoning, [call["name"] for call in calls.values()]) == expected
    assert all(json.loads(call["arguments"]) == {"minutes": 5} for call in calls.values())
    assert entries[-1][7] == ("tool_calls" if expected[2] else "stop", None)
    for cut in range(1, len(ids)):
        assert whole([*entries[:cut], *parsed(llm, parsers, ids, cut)]) == whole(entries)
    for bundle in (2, 7, len(ids)):
        assert whole(parsed(llm, parsers, ids, bundle=bundle)) == whole(entries)


async def test_a_tokenizer_without_the_words_of_a_parser_is_said_at_the_start(llm):
    from components.host.errors import CannotStart  # noqa: PLC0415
    from components.worker.vllm.parsing import Parsing  # noqa: PLC0415

    with pytest.raises(CannotStart, match="jamba"):
        Parsing(llm, "jamba", "", lambda _: None)
