"""What a token costs in a worker: `python -m tests.bench.frames [--json] [--tokens N]`.

Every row is the best of three runs at 64 and at 256 streams, in microseconds per token.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final

import uvloop

from bus import codec, subjects
from bus.memory_bus import MemoryBus, MemoryHub
from components.domain.engine_model import EngineLimits
from components.domain.profiles import profile_named
from components.host.clock import SystemClock
from components.worker.engine import EngineEvent, Job
from components.worker.frames import Frames
from components.worker.simulated.engine import SimulatedEngine, SimulatedModel
from components.worker.simulated.link import SimulatedLink
from components.worker.simulated.writing import Writing
from schemas.body import SamplingParameters
from schemas.frames import ENTRIES_MAX, Entry
from tests.bench.printed import printed

STREAMS: Final = (64, 256)
PROMPT: Final = tuple(range(300, 1300))
FOREVER: Final = SamplingParameters(max_tokens=1_000_000, ignore_eos=True)
SAMPLINGS: Final = {
    "": FOREVER,
    ", a stop string": FOREVER.model_copy(update={"stop": ("never to be said",)}),
    ", 5 logprobs": FOREVER.model_copy(update={"logprobs": 5}),
}


def best_of_three(once: Callable[[], float]) -> float:
    return min(once() for _ in range(3))


def jobs(streams: int, sampling: SamplingParameters) -> list[Job]:
    """As many jobs as streams, with ids as long as real ones."""
    return [Job(f"chatcmpl-{n:032x}", 1, "aggregated", PROMPT, sampling) for n in range(streams)]


def steps_of(streams: int, steps: int, sampling: SamplingParameters) -> list[list[Entry]]:
    """What an engine gives in so many steps."""
    writings = [Writing(job, 0, sampling) for job in jobs(streams, sampling)]
    return [[writing.write(1) for writing in writings] for _ in range(steps)]


def opened(streams: int, send: Callable[[str, bytes], None]) -> Frames:
    """Frames with that many open streams, whose loop turn ends when `flush` is called."""
    frames = Frames(
        1,
        send,
        lambda _flush: None,
        streams_max=10_000,
        kept_bytes_max=1 << 30,
        kept_s=30.0,
        now_s=0.0,
    )
    for job in jobs(streams, FOREVER):
        frames.open(job.key, "gateway-0")
        frames.begin(job.key, {0: 0})
    return frames


def writing(streams: int, steps: int, sampling: SamplingParameters) -> float:
    """Seconds per token of making it up."""
    start = perf_counter()
    steps_of(streams, steps, sampling)
    return (perf_counter() - start) / (streams * steps)


def collecting(streams: int, steps: int, sampling: SamplingParameters) -> float:
    """Seconds per token from the sink to packed frames, the memory for resumes included."""
    given = steps_of(streams, steps, sampling)
    frames = opened(streams, lambda _gateway, _payload: None)
    start = perf_counter()
    for entries in given:
        frames.add(entries)
        frames.flush()
    return (perf_counter() - start) / (streams * steps)


def packing(streams: int, steps: int) -> float:
    """Seconds per token of msgpack alone."""
    given = steps_of(streams, steps, FOREVER)
    start = perf_counter()
    for entries in given:
        for first in range(0, streams, ENTRIES_MAX):
            codec.pack_frame(1, 1, entries[first : first + ENTRIES_MAX])
    return (perf_counter() - start) / (streams * steps)


def whole(streams: int, steps: int) -> float:
    """Seconds per token of the whole worker side in a loop: model, words, frames, memory bus."""

    async def run() -> float:
        clock, hub = SystemClock(), MemoryHub()
        bus = MemoryBus(hub, source="decode-0", epoch=1)
        await bus.connect()
        subject = subjects.frames("gateway-0", "decode-0")
        loop = asyncio.get_running_loop()
        frames = opened(streams, lambda _gateway, payload: bus.publish_frame(subject, payload))
        frames._soon = loop.call_soon
        engine = SimulatedEngine(
            SimulatedModel("sim/words", 1, 2_000_000),
            profile_named("constant"),
            EngineLimits(seqs_max=streams, kv_pages=10_000_000),
            clock=clock,
            link=SimulatedLink(clock, gb_per_s=1.0, latency_ms=0.0),
            on_fault=lambda error: sys.exit(repr(error)),
        )
        seen = 0
        done: asyncio.Future[None] = loop.create_future()

        def sink(entries: list[Entry], events: list[EngineEvent]) -> None:
            nonlocal seen
            frames.add(entries)
            seen += len(entries)
            if seen >= streams * steps and not done.done():
                done.set_result(None)

        await engine.start(sink)
        for job in jobs(streams, FOREVER):
            engine.submit(job)
        start = perf_counter()
        await done
        taken_s = perf_counter() - start
        await engine.stop()
        await bus.close()
        return taken_s / seen

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def measure(tokens: int) -> list[dict[str, float | str]]:
    """One row per case: what, microseconds per token at 64 and at 256 streams."""
    cases: dict[str, Callable[[int, int], float]] = {}
    for name, sampling in SAMPLINGS.items():
        cases[f"write words{name}"] = partial(writing, sampling=sampling)
    for name in ("", ", 5 logprobs"):
        cases[f"collect, keep, pack{name}"] = partial(collecting, sampling=SAMPLINGS[name])
    cases["  of that, msgpack"] = packing
    cases["engine to bus, everything"] = whole
    return [
        {"what": what}
        | {
            f"us_per_token_{streams}": 1e6
            * best_of_three(partial(case, streams, max(1, tokens // streams)))
            for streams in STREAMS
        }
        for what, case in cases.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--tokens", type=int, default=100_000, help="how many per run")
    arguments = parser.parse_args()
    rows = measure(arguments.tokens)
    printed(
        rows,
        ("us per token", *(f"{streams} streams" for streams in STREAMS)),
        lambda row: (
            row["what"],
            *(f"{row[f'us_per_token_{streams}']:.2f}" for streams in STREAMS),
        ),
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
