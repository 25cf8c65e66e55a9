"""Ranks hand blocks of real GPU memory over through NCCL: whole, staged, and after a death."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm.distributed.device_communicators.pynccl")

from tests.gpu.conftest import DEVICES, ENVIRONMENTS  # noqa: E402

ROOT = Path(__file__).parents[2]
SETTINGS = {"pull_timeout_ms": 15_000, "open_timeout_ms": 10_000, "staging_bytes": 1_500}
ANSWER_S = 60
#: Of two workers, by which of their caches is made.
P, D = "prefill-0", "decode-0"
SEEDS = {P: 1, D: 2}


class Rank:
    """``await rank("pin", ...)`` asks the process behind it."""

    def __init__(self, worker, epoch, process):
        self.worker, self.epoch, self.process = worker, epoch, process

    async def __call__(self, *command):
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(ANSWER_S):
            line = await self.process.stdout.readline()
        assert line, f"{self.worker} ended at {command}"
        return json.loads(line)


@pytest.fixture
async def start(nats_server):
    """``await start("prefill-0", epoch=1)``"""
    started = []
    names = [f"{worker}-engine-0" for worker in SEEDS]
    keys = {name: str(nats_server.key_file("connector", name)) for name in names}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    async def make(worker, epoch=1, **settings):
        end = 0 if worker == P else 1
        told = {
            "worker": worker,
            "epoch": epoch,
            "url": nats_server.url,
            "keys": keys,
            "seed": SEEDS[worker],
            "device": DEVICES[end],
            "settings": {**SETTINGS, **settings},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.gpu.rank_process", json.dumps(told),
            cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **ENVIRONMENTS[end]},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return Rank(worker, epoch, process)

    yield make
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_blocks_arrive_as_they_were_in_chunks_and_from_the_middle(start):
    p, d = await asyncio.gather(start(P), start(D))
    held = [9, 3, 40, 41, 7, 8, 63, 0]
    for n in range(5):
        await p("pin", f"t{n}", held, 60_000)
        await d("pull", f"t{n}", P, p.epoch, [5, 50, 6, 1, 2, 60], 2)
        took_s = await d("until", "received", n + 1)
        print(f"transfer {n}: {took_s * 1e3:.1f} ms{' (opens the link)' if n == 0 else ''}")
    await p("until", "sent", 5)
    assert await d("named", "failed") == []
    assert await d("holds", [5, 50, 6, 1, 2, 60], SEEDS[P], held[2:])
    assert await p("pinned") == 0


async def test_what_d_has_no_blocks_for_waits_in_pinned_host_memory(start):
    p, d = await asyncio.gather(start(P), start(D))
    await p("pin", "t1", [9, 3, 40], 60_000)
    await d("stage", "t1", P, p.epoch, 3)
    await d("until_staged")
    await p("until", "sent", 1)
    await d("pull", "t1", P, p.epoch, [1, 2, 3], 0)
    await d("until", "received", 1)
    assert await d("named", "failed") == []
    assert await d("holds", [1, 2, 3], SEEDS[P], [9, 3, 40])


async def test_a_holder_killed_in_mid_transfer_costs_a_failed_pull_and_the_next_one_serves(start):
    p, d = await asyncio.gather(start(P), start(D, pull_timeout_ms=5_000))
    await p("pin", "t1", [1, 2, 3, 4, 5], 60_000)
    await p("stop_at", 2)
    await d("pull", "t1", P, p.epoch, [11, 12, 13, 14, 15], 0)
    assert await p("until_stopped")
    p.process.kill()
    await p.process.wait()
    took_s = await d("until", "received", 1)
    assert took_s < 8
    assert await d("named", "failed") == ["d-t1"]
    again = await start(P, epoch=2)
    await again("pin", "t2", [1, 2, 3, 4, 5], 60_000)
    await d("pull", "t2", P, again.epoch, [11, 12, 13, 14, 15], 0)
    await d("until", "received", 2)
    assert await d("named", "failed") == ["d-t1"]
    assert await d("holds", [11, 12, 13, 14, 15], SEEDS[P], [1, 2, 3, 4, 5])


async def test_a_puller_killed_in_mid_transfer_frees_what_was_pinned_for_it(start):
    p, d = await asyncio.gather(start(P), start(D))
    await p("pin", "t1", [1, 2, 3, 4, 5], 4_000)
    await p("stop_at", 3)
    await d("pull", "t1", P, p.epoch, [11, 12, 13, 14, 15], 0)
    assert await p("until_stopped")
    d.process.kill()
    await d.process.wait()
    await p("go_on")
    assert await p("until", "sent", 1) < 12
    assert await p("pinned") == 0
