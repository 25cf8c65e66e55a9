"""What a handoff costs: `python -m tests.bench.handoff_cost [--json] [--repeats N]`.

The same prompts go through pairs of real engines, one pair per connector: ours over Gloo, vLLM's
ExampleConnector (shared files), and NIXL where it can be imported. The order of the pairs changes
with every prompt, so that what else the machine does hits all alike; while one pair is measured the
others are stopped (SIGSTOP): an idle NIXL engine keeps a core busy.

A transfer is measured on D: from the prompt's arrival, with P's answer in hand, to its first
token, less what the same prompt takes there when all of it is cached already. Files have no moment
at which P is done with the prompt and the transfer not begun: P writes them while it computes. So
P's time is shown too, and `whole` is both together: prompt in at P, first token out at D.

What was found, on two cores and loopback. One prompt at a time, ours is ahead of NIXL at every
length (about 0.6 of its whole handoff). Files look cheaper for short prompts, 1.4 to 2.5 ms against
our 5 to 6: D reads them inside the model's step, where everybody else waits for it, asks nobody
whether they are there, needs a disk that both share, and computes the last, partial block itself.
Of ours nothing waits: the request is parked, a thread asks P over NATS, takes the bytes, and the
next step finds them, at the price of those hand-overs between threads. From 1,000 tokens on the
whole is the same, as P has files to write. Eight prompts at once come one after the other over the
one link of a pair of ranks, each with its question: there NIXL is ahead for short prompts. To ask
for the next while one is under way would close that.
"""

import argparse
import asyncio
import importlib.util
import json
import math
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from bus.server import NatsServer, free_port
from components.worker.vllm.tiny_model import build
from tests.engine.connector.engines import EngineInTest, client_of

LENGTHS = (32, 100, 250, 500, 1_000)
AT_A_TIME = 8
#: A whole group in one step: the ExampleConnector keeps only the last chunk of a prompt that is
#: computed in several, and D dies of it.
STEP_TOKENS = AT_A_TIME * max(LENGTHS)
BLOCK_TOKENS = 32
#: Two layers, two heads of 2 x 32 numbers of four bytes each.
BLOCK_BYTES = 2 * 2 * BLOCK_TOKENS * 64 * 4
MIB = 1 << 20


@dataclass
class Pair:
    """Two engines with one kind of connector between them, and what was measured there."""

    kind: str
    p: EngineInTest
    d: EngineInTest
    prefill_kv: dict[str, Any] | None
    rows: dict[tuple[int, int], "Row"] = field(default_factory=dict)

    def stop(self) -> None:
        """Take no time of the processor until ``go_on``."""
        for engine in (self.p, self.d):
            engine.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        for engine in (self.p, self.d):
            engine.signal(signal.SIGCONT)

    def row(self, length: int, together: int) -> "Row":
        return self.rows.setdefault((length, together), Row())


@dataclass
class Row:
    """Milliseconds; one number per prompt, but one per group in `group`."""

    prefill: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    group: list[float] = field(default_factory=list)

    @property
    def transfer(self) -> list[float]:
        return [first - cached for first, cached in zip(self.first, self.cached, strict=True)]

    @property
    def whole(self) -> list[float]:
        return [first + prefill for first, prefill in zip(self.first, self.prefill, strict=True)]


def kinds(folder: Path) -> dict[str, dict[str, Any]]:
    """Options of the agents by kind of connector."""
    shared = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "shared")},
    }
    found: dict[str, dict[str, Any]] = {"ours": {"connector": {}}, "files": {"transfer": shared}}
    if importlib.util.find_spec("nixl") is not None:
        nixl = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
        found["nixl"] = {"transfer": nixl}
    return found


def told_to_p(kind: str) -> dict[str, Any] | None:
    if kind == "files":
        return None
    nobody = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
    return {"do_remote_decode": True, "do_remote_prefill": False, **dict.fromkeys(nobody)}


class Yard:
    """All pairs, started one after the other, stopped together."""

    def __init__(self, folder: Path, only: list[str]) -> None:
        self._folder = folder
        self._only = only
        self._server = NatsServer(folder / "nats")
        self._engines: list[EngineInTest] = []
        self.pairs: list[Pair] = []

    async def __aenter__(self) -> Self:
        build(self._folder / "tiny")
        self._url = await self._server.start()
        self._client = await client_of(self._url)
        chosen = {k: v for k, v in kinds(self._folder).items() if not self._only or k in self._only}
        for kind, options in chosen.items():
            p = await self._start(f"{kind}-p", options)
            d = await self._start(f"{kind}-d", options)
            self.pairs.append(Pair(kind, p, d, told_to_p(kind)))
            for engine in (p, d):  # six at once would take longer than anybody waits
                await engine.ready()
        return self

    async def _start(self, name: str, options: dict[str, Any]) -> EngineInTest:
        environment = {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        }
        engine: EngineInTest = await EngineInTest.start(
            name,
            self._folder / "tiny",
            self._url,
            self._client,
            self._folder,
            environment=environment,
            engine={"max_num_batched_tokens": STEP_TOKENS},
            **options,
        )
        self._engines.append(engine)
        return engine

    async def __aexit__(self, *_: object) -> None:
        for pair in self.pairs:
            pair.go_on()
        await asyncio.gather(*(engine.stop() for engine in self._engines))
        await self._client.close()
        await self._server.stop()


async def measure(pair: Pair, prompts: list[list[int]], name: str, keep: bool) -> None:
    """Hand these prompts over together."""
    clock = asyncio.get_running_loop().time
    tag = f"{name}-{pair.kind}"
    asked = list(enumerate(prompts))
    prefilled = await asyncio.gather(
        *(pair.p.generate(f"{tag}-p{n}", prompt, 1, pair.prefill_kv) for n, prompt in asked)
    )
    began_s = clock()
    first = await asyncio.gather(
        *(
            pair.d.generate(f"{tag}-d{n}", prompt, 1, answer["kv"])
            for (n, prompt), answer in zip(asked, prefilled, strict=True)
        )
    )
    took_ms = (clock() - began_s) * 1e3
    for engine, answers in ((pair.p, prefilled), (pair.d, first)):
        for answer in answers:
            if "error" in answer:
                raise RuntimeError(f"{answer['error']}\n{engine.log.read_text()[-30_000:]}")
    assert [a["ids"] for a in first] == [a["ids"] for a in prefilled], f"{pair.kind}: wrong token"
    again = await asyncio.gather(
        *(pair.d.generate(f"{tag}-c{n}", prompt, 1) for n, prompt in asked)
    )
    if keep:
        row = pair.row(len(prompts[0]), len(prompts))
        row.prefill += [answer["ms"] for answer in prefilled]
        row.first += [answer["ms"] for answer in first]
        row.cached += [answer["ms"] for answer in again]
        row.group.append(took_ms)


async def run(pairs: list[Pair], repeats: int, seed: int = 1) -> None:
    source = random.Random(seed)
    for pair in pairs:
        pair.stop()
    for repeat in range(-2, repeats):  # two rounds to warm up
        for length in LENGTHS:
            for together in (1, AT_A_TIME):
                if together > 1 and repeat % 3:
                    continue
                prompts = [
                    [source.randrange(8, 264) for _ in range(length)] for _ in range(together)
                ]
                for pair in source.sample(pairs, len(pairs)):
                    name = f"{repeat}-{length}-{together}"
                    pair.go_on()
                    await measure(pair, prompts, name, keep=repeat >= 0)
                    await asyncio.gather(pair.p.freed_within(20), pair.d.freed_within(20))
                    pair.stop()
    for pair in pairs:
        pair.go_on()


async def external_tokens(pair: Pair) -> int:
    stats: dict[str, float] = await pair.d.stats()
    return int(stats.get("vllm:external_prefix_cache_hits_total", 0))


def loaded_tokens(kind: str, length: int) -> int:
    """What D loads of a prompt: files hold whole blocks, and never the last token's."""
    return (length - 2) // BLOCK_TOKENS * BLOCK_TOKENS if kind == "files" else length


def summary(pair: Pair) -> list[dict[str, Any]]:
    rows = []
    for (length, together), row in sorted(pair.rows.items(), key=lambda item: item[0][::-1]):
        blocks = math.ceil(loaded_tokens(pair.kind, length) / BLOCK_TOKENS)
        low, middle, high = statistics.quantiles(row.transfer, n=4)
        moved = blocks * BLOCK_BYTES
        rows.append(
            {
                "connector": pair.kind,
                "tokens": length,
                "together": together,
                "bytes": moved,
                "transfer_ms": middle,
                "transfer_ms_quartiles": [low, high],
                "first_token_ms": statistics.median(row.first),
                "prefill_ms": statistics.median(row.prefill),
                "whole_ms": statistics.median(row.whole),
                "group_ms": statistics.median(row.group),
                "gb_per_s": moved * together / statistics.median(row.group) / 1e6,
                "samples": len(row.first),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="One handoff: medians in ms, quartiles of the transfer")
    for column in ("tokens", "together", "connector", "MiB", "transfer", "quartiles"):
        shown.add_column(column, justify="right")
    for column in ("first token", "prefill", "whole", "group", "GB/s", "samples"):
        shown.add_column(column, justify="right")
    for row in sorted(rows, key=lambda r: (r["together"], r["tokens"])):
        low, high = row["transfer_ms_quartiles"]
        shown.add_row(
            str(row["tokens"]),
            str(row["together"]),
            row["connector"],
            f"{row['bytes'] / MIB:.2f}",
            f"{row['transfer_ms']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['first_token_ms']:.2f}",
            f"{row['prefill_ms']:.2f}",
            f"{row['whole_ms']:.2f}",
            f"{row['group_ms']:.2f}",
            f"{row['gb_per_s']:.3f}",
            str(row["samples"]),
        )
    return shown


async def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Yard(Path(folder), arguments.only) as yard:
            await run(yard.pairs, arguments.repeats)
            rows = [row for pair in yard.pairs for row in summary(pair)]
            loaded = {pair.kind: await external_tokens(pair) for pair in yard.pairs}
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine()}
        json.dump({"machine": machine, "external_tokens": loaded, "rows": rows}, sys.stdout)
        return
    console = Console(width=140)
    console.print(table(rows))
    console.print("tokens that came from outside, by vLLM's own count:", loaded)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--repeats", type=int, default=21, help="prompts of each length")
    parser.add_argument("--only", nargs="*", default=[], help="kinds: ours files nixl")
    asyncio.run(main(parser.parse_args()))
