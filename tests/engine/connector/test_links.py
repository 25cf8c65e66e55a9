"""Links between two processes that meet over a real NATS, each with the key of a connector."""

import pytest

pytest.importorskip("torch")

from tests.engine.connector.ends import Ends
from tests.engine.connector.link_promises import (  # noqa: F401  (collected here)
    test_a_silent_peer_ends_the_wait_at_the_deadline_and_a_new_link_works,
    test_closing_a_link_wakes_who_waits_on_it,
    test_links_one_after_the_other_leave_nothing_behind,
)


@pytest.fixture
async def run(nats_server):
    """``await run("killed")``: what P's end and D's end saw."""
    ends = Ends(nats_server)
    yield ends.run
    await ends.stop()


async def test_bytes_arrive_and_fast_enough(run, record_property):
    _, d = await run("throughput")
    rate = 64 / 1024 / d[str(64 << 20)] * 1e3
    record_property("gib_per_s", rate)
    print(f"open {d['open_ms']:.1f} ms, 64 MiB at {rate:.2f} GiB/s, all: {d}")
    assert rate > 0.1


async def test_a_killed_peer_ends_the_wait_at_once(run):
    _, d = await run("killed")
    assert d["error"] == "LinkFailed"
    assert d["ms"] < 2_000


async def test_an_end_that_waits_for_the_other_in_vain_gives_up(run):
    p, _ = await run("alone")
    assert "in time" in p["error"]
    assert 490 < p["ms"] < 2_000


async def test_an_end_that_freezes_while_the_link_is_opened_costs_no_more_than_the_deadline(run):
    p, _ = await run("froze")
    assert p["error"]
    assert p["ms"] < 2_000
