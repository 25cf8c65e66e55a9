"""What constrains an output holds where it is decoded, and the KV may come from elsewhere."""

import json

import pytest
import pytest_asyncio

from tests.engine.engines import bytes_of, finished, job, running_engine
from tests.engine.test_handoff import connector_of, handed_over
from tests.engine.test_parsing import SCHEMA, constrained, fits

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = bytes_of("The yard is quiet at night, and every track is free. " * 3)
CONFIG = {"backend": "xgrammar", "disable_any_whitespace": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("handoff")
    there = running_engine(tiny_model, kv_transfer=connector_of("example", "p", folder))
    async with there as prefill:
        here = running_engine(
            tiny_model,
            kv_transfer=connector_of("example", "d", folder),
            structured_outputs_config=CONFIG,
        )
        async with here as decode:
            yield "example", *prefill, *decode


async def test_a_schema_is_kept_to_where_it_is_decoded_and_after_a_death(pair):
    _, p, _, d, d_sink = pair
    given = {"max_tokens": 100, "ignore_eos": False, **constrained("json", SCHEMA)}
    await handed_over(pair, "whole", PROMPT, **given)
    ids, text = d_sink.ids("whole"), d_sink.text("whole")
    assert fits(json.loads(text))
    assert not p._backend._rehearsals._verdicts  # P was told of no constraint
    assert await d.reset_prefix_cache()
    loaded = d._backend.stats.external_hit_tokens
    await handed_over(pair, "rest", PROMPT, emitted={0: (ids[:9], False)}, **given)
    assert d._backend.stats.external_hit_tokens > loaded
    assert ids[:9] + d_sink.ids("rest") == ids


async def test_prompt_logprobs_are_computed_where_it_is_decoded(pair):
    _, _, _, d, d_sink = pair
    given = {"max_tokens": 3, "prompt_logprobs": 1}
    d.submit(job("alone", prompt=PROMPT, **given))
    await finished(d_sink, "alone")
    await handed_over(pair, "apart", PROMPT, **given)
    [rows, alone] = [d_sink.of(name)[0][6]["prompt_logprobs"] for name in ("apart", "alone")]
    assert len(rows) == len(PROMPT)
    assert [row[0][0] for row in rows[1:]] == PROMPT[1:]
    assert [row[0][1] for row in rows[1:]] == pytest.approx([r[0][1] for r in alone[1:]], abs=1e-4)
