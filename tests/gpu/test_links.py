"""NCCL links between two processes: what crosses them, and how each way to break one ends.

The bars on time are for a GPU that both ends may share.
"""

from tests.engine.connector.link_promises import (  # noqa: F401  (collected here)
    test_a_silent_peer_ends_the_wait_at_the_deadline_and_a_new_link_works,
    test_closing_a_link_wakes_who_waits_on_it,
    test_links_one_after_the_other_leave_nothing_behind,
)
from tests.gpu.conftest import GPUS

ERRORS = ("LinkFailed", "LinkTimedOut")


async def test_bytes_arrive(run, record_property):
    _, d = await run("throughput")
    rate = 64 / 1024 / d[str(64 << 20)] * 1e3
    record_property("gib_per_s", rate)
    apart = "" if GPUS > 1 else " (one GPU, sockets)"
    print(f"open {d['open_ms']:.0f} ms, 64 MiB at {rate:.2f} GiB/s{apart}, all: {d}")
    assert rate > (5 if GPUS > 1 else 0.02)


async def test_a_killed_peer_ends_the_wait_by_the_deadline(run):
    _, d = await run("killed")
    assert d["error"] in ERRORS
    assert d["ms"] < 7_000


async def test_an_end_that_waits_for_the_other_in_vain_gives_up(run):
    p, _ = await run("alone")
    assert "the other end did not come" in p["error"]
    assert 490 < p["ms"] < 3_000
