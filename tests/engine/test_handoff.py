"""The phases prefill and decode with connectors that vLLM brings along: what they need is relayed.

Two engines, one process: what passes between them are the params of an offer, and whatever the
connector moves by itself.
"""

import importlib.util

import pytest
import pytest_asyncio

from components.worker.engine import KvArrived, KvSource, Prefilled
from tests.engine.engines import WITHIN_S, bytes_of, finished, job, running_engine
from tests.support.nats import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "The yard is quiet at night, and every track is free. " * 10
LENGTHS = (5, 33, 64, 100, 400)
NIXL = pytest.param(
    "nixl",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("nixl") is None, reason="nixl is not installed"
    ),
)


def connector_of(kind, side, tmp_path):
    if kind == "example":
        folder = str(tmp_path / "kv")
        return {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "engine_id": side,
            "kv_connector_extra_config": {"shared_storage_path": folder},
        }
    role = "kv_producer" if side == "p" else "kv_consumer"
    return {
        "kv_connector": "NixlConnector",
        "kv_role": role,
        "engine_id": side,
        "kv_buffer_device": "cpu",
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["example", NIXL])
async def pair(request, tiny_model, tmp_path_factory):
    kind, folder = request.param, tmp_path_factory.mktemp("handoff")
    ports = {"p": "5600", "d": "5700"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "localhost")
        patch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", ports["p"])
        there = running_engine(tiny_model, kv_transfer=connector_of(kind, "p", folder))
        async with there as prefill:
            patch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", ports["d"])
            here = running_engine(tiny_model, kv_transfer=connector_of(kind, "d", folder))
            async with here as decode:
                yield kind, *prefill, *decode


async def handed_over(pair, name, prompt, **given):
    """Compute the prompt on P, decode on D; the offer is all that the one tells the other."""
    _, p, p_sink, d, d_sink = pair
    p.submit(job(name, prompt=prompt, phase="prefill", **given))
    await until(lambda: any(e.key == (name, 1) for e in p_sink.events), "the prefill", WITHIN_S)
    [prefilled] = [e for e in p_sink.events if e.key == (name, 1)]
    assert isinstance(prefilled, Prefilled)
    assert p.load().kv_pages_used >= prefilled.pages
    source = KvSource("t", "p", prefilled.tokens, prefilled.bytes_total, prefilled.params)
    d.submit(job(name, prompt=prompt, phase="decode", kv=source, **given))
    await finished(d_sink, name, given.get("n", 1))
    p.release((name, 1))
    return prefilled


@pytest.mark.parametrize("length", LENGTHS)
async def test_what_is_decoded_elsewhere_is_what_one_engine_writes(pair, length):
    kind, _, p_sink, d, d_sink = pair
    prompt = bytes_of(TEXT)[-length:]
    d.submit(job(f"alone-{length}", prompt=prompt))
    await finished(d_sink, f"alone-{length}")
    expected = d_sink.ids(f"alone-{length}"), d_sink.text(f"alone-{length}")
    assert await d.reset_prefix_cache()
    loaded = d._backend.stats.external_hit_tokens
    prefilled = await handed_over(pair, f"apart-{length}", prompt)
    assert prefilled.tokens == length
    assert (d_sink.ids(f"apart-{length}"), d_sink.text(f"apart-{length}")) == expected
    loaded = d._backend.stats.external_hit_tokens - loaded
    # The one that goes by files hands over whole blocks, and never the last token.
    assert loaded == (length if kind == "nixl" else (length - 2) // 32 * 32)
    assert not [e for e in p_sink.entries if e[0] == f"apart-{length}"]
    [arrived] = [e for e in d_sink.events if e.key == (f"apart-{length}", 1)]
    assert arrived == KvArrived((f"apart-{length}", 1), prefilled.bytes_total)


async def test_choices_share_what_was_handed_over(pair):
    _, _, _, d, d_sink = pair
    prompt = bytes_of(TEXT)[:130]
    assert await d.reset_prefix_cache()
    await handed_over(pair, "three", prompt, n=3)
    assert d_sink.ids("three", 0) == d_sink.ids("three", 1) == d_sink.ids("three", 2)
    assert all(d_sink.finish("three", c)[2] >= 128 for c in (1, 2))


async def test_a_continuation_is_handed_over_with_what_was_emitted(pair):
    _, _, _, d, d_sink = pair
    prompt = bytes_of(TEXT)[:70]
    d.submit(job("whole", prompt=prompt))
    await finished(d_sink, "whole")
    ids = d_sink.ids("whole")
    assert await d.reset_prefix_cache()
    prefilled = await handed_over(pair, "rest", prompt, emitted={0: (ids[:9], False)})
    assert prefilled.tokens == 79
    assert ids[:9] + d_sink.ids("rest") == ids
