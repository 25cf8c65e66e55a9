"""Links between two processes that meet over a real NATS, each with the key of a connector."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[3]
NAMES = ("prefill-0-engine-0", "decode-0-engine-0")
SCENARIO_S = 60


@pytest.fixture
async def run(nats_server):
    """``await run("killed")``: what P's end and D's end saw."""
    keys = [str(nats_server.key_file("connector", name)) for name in NAMES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started: list[asyncio.subprocess.Process] = []

    async def start(number, scenario):
        told = {"end": number, "url": nats_server.url, "keys": keys, "scenario": scenario}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.engine.connector.link_end", json.dumps(told),
            cwd=ROOT, env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"up\n"
        return process

    async def both(scenario):
        async with asyncio.timeout(SCENARIO_S):
            ends = await asyncio.gather(start(0, scenario), start(1, scenario))
            said = await asyncio.gather(*(end.communicate(b"go\n") for end in ends))
        return [json.loads(out or b"{}") for out, _ in said]

    yield both
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


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


async def test_a_silent_peer_ends_the_wait_at_the_deadline_and_a_new_link_works(run):
    _, d = await run("silent")
    assert d["error"] == "LinkTimedOut"
    assert 490 < d["ms"] < 2_000


async def test_closing_a_link_wakes_who_waits_on_it(run):
    _, d = await run("closed")
    assert d["error"] == "LinkFailed"
    assert d["ms"] < 900


async def test_an_end_that_waits_for_the_other_in_vain_gives_up(run):
    p, _ = await run("alone")
    assert "in time" in p["error"]
    assert 490 < p["ms"] < 2_000


async def test_an_end_that_freezes_while_the_link_is_opened_costs_no_more_than_the_deadline(run):
    p, _ = await run("froze")
    assert p["error"]
    assert p["ms"] < 2_000


async def test_twenty_links_one_after_the_other_leave_nothing_behind(run):
    for seen in await run("cycles"):
        assert seen["last"] == seen["first"]
        assert seen["boards"] == 0
