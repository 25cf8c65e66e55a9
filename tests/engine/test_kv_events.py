"""What a real vLLM caches and drops is told in page hashes."""

import pytest

from components.domain.pages import page_hashes
from tests.engine.engines import WITHIN_S, bytes_of, finished, job, running_engine
from tests.support.nats import until

PROMPT = bytes_of("The yard is quiet at night, and every track is free. " * 4)[:200]


@pytest.mark.parametrize("kv_cache_memory_bytes", [16 * 32 * 1024])
async def test_a_prefix_cache_is_told_page_by_page(tiny_model, kv_cache_memory_bytes):
    pages: list[int] = []
    cleared = []

    def follow(change):
        if change.cleared:
            cleared.append(True)
            pages.clear()
        assert not change.parent or change.parent in pages
        pages.extend(change.stored)
        for page in change.removed:
            pages.remove(page)

    small = {"kv_cache_memory_bytes": kv_cache_memory_bytes, "max_model_len": 400}
    async with running_engine(tiny_model, on_pages=follow, **small) as (engine, sink):
        engine.submit(job("first", prompt=PROMPT, tenant=7))
        await finished(sink, "first")
        whole = (*PROMPT, *sink.ids("first"))
        # The last token's KV is never computed; blocks of two pages are cached when full.
        expected = list(page_hashes(whole[: (len(whole) - 1) // 32 * 32], 7))
        await until(lambda: pages == expected, "the pages of the first", WITHIN_S)
        for number in range(3):  # sixteen blocks are soon full
            other = [number + 50, *PROMPT]
            engine.submit(job(f"r{number}", prompt=other, tenant=number))
            await finished(sink, f"r{number}")
        known = page_hashes([52, *PROMPT], 2)[:12]
        await until(lambda: set(known) <= set(pages), "the pages of the last", WITHIN_S)
        assert len(pages) <= 32
        assert not set(expected) <= set(pages)
        assert await engine.reset_prefix_cache()
        engine.submit(job("after", prompt=PROMPT, tenant=7))
        await finished(sink, "after")
        await until(lambda: bool(cleared) and pages == expected, "the reset", WITHIN_S)
