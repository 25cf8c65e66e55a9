"""500 requests of a production trace, and what the history says of them afterwards."""

import asyncio
import gzip
import json
import statistics
from dataclasses import dataclass

from bus.codec import Decoded
from components.domain.profiles import profile_named
from components.domain.traces import Arrival, parse_azure, rescaled
from components.replay.recording import Recording
from components.simulator.two_phase import Fleet as Modelled
from components.simulator.two_phase import predict
from schemas.request import RequestEvent, RequestEventsBatched
from tests.show.fleet import SWITCHYARD, Fleet
from tests.show.proof import Figure, Run, Void
from tests.show.python import REPOSITORY

TRACE = REPOSITORY / "tests" / "data" / "azure_conv_slice.csv.gz"
PROFILE = "llama3-8b/tp1/h100"
RATE_PER_S = 4.0
STEPS = (
    "accepted",
    "scheduled",
    "routed",
    "dispatched",
    "handed_over",
    "first_token",
    "finished",
)


@dataclass(slots=True)
class TraceRun:
    """What is left of a run: the load generator's records and the streams."""

    requests: int
    records: list[dict[str, object]]
    summary: dict[str, object]
    steps: list[Decoded]
    recording: Recording


_done: dict[tuple[str | None, bool], TraceRun] = {}


async def trace_run(run: Run) -> TraceRun:
    """The run itself; made once per process and fault, because three proofs look at it."""
    key = (run.fault, run.quick)
    if key not in _done:
        _done[key] = await _play(run)
    return _done[key]


async def _play(run: Run) -> TraceRun:
    requests = 60 if run.fault or run.quick else 500
    fleet = Fleet(run.folder / "fleet", ("--profile", PROFILE, "--speed", "1"), run.fault)
    async with fleet:
        saved = run.folder / "records.json"
        bench = await asyncio.create_subprocess_exec(
            *(*SWITCHYARD, "bench", "serve", "--url", fleet.url, "--trace", str(TRACE)),
            *("--rate", str(RATE_PER_S), "--limit", str(requests)),
            *("--save", str(saved), "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await bench.communicate()
        if not out:
            raise Void("the load generator did not run")
        summary = json.loads(out)
        records = [json.loads(line) for line in saved.read_text().splitlines()]
        await asyncio.sleep(1.0)  # the last batch of steps leaves within 10 ms
        recording = Recording()
        steps = await fleet.history("REQUESTS")
        for stream in ("JOURNAL", "ENGINE_STATE"):
            for decoded in await fleet.history(stream):
                recording.add(decoded)
        for decoded in steps:
            recording.add(decoded)
    return TraceRun(requests, records, summary, steps, recording)


def arrivals(limit: int) -> list[Arrival]:
    """The rows that the load generator plays, at its rate."""
    rows = parse_azure(gzip.decompress(TRACE.read_bytes()).decode().splitlines())
    return rescaled(rows[:limit], RATE_PER_S)


async def end_to_end(run: Run) -> Figure:
    """Live E2E against the engine models alone: the mean and the median."""
    played = await trace_run(run)
    errors = [r for r in played.records if r["error"] is not None]
    predicted = predict(arrivals(played.requests), profile_named(PROFILE), Modelled())
    live = [float(r["e2e_s"]) for r in played.records if r["e2e_s"] is not None]  # type: ignore[arg-type]
    model = [p.e2e_s for p in predicted]
    ratios = {
        "mean": statistics.mean(live) / statistics.mean(model),
        "p50": statistics.median(live) / statistics.median(model),
        "p90": statistics.quantiles(live, n=10)[-1] / statistics.quantiles(model, n=10)[-1],
    }
    holds = (
        not errors
        and len(live) == played.requests
        and all(abs(r - 1) <= 0.10 for r in ratios.values())
    )
    text = (
        f"{len(live)} requests, {len(errors)} errors; E2E mean {statistics.mean(live):.3f} s "
        f"against {statistics.mean(model):.3f} s predicted; live / model: "
        + ", ".join(f"{k} {v:.3f}" for k, v in ratios.items())
    )
    return Figure(text, holds, {"ratios": ratios, "errors": len(errors)})


async def every_step(run: Run) -> Figure:
    """REQUESTS holds each request's seven steps, under one trace id."""
    played = await trace_run(run)
    seen: dict[str, dict[str, set[str]]] = {}
    for event, source in _events(played.steps):
        steps = seen.setdefault(event.request_id, {})
        trace = event.traceparent.split("-")[1] if event.traceparent else "none"
        steps.setdefault(event.step, set()).add(f"{trace} {source.rsplit('-', 1)[0]}")
    whole = [r for r, steps in seen.items() if set(STEPS) <= set(steps)]
    one_trace = [
        r
        for r in whole
        if len({t.split()[0] for ts in seen[r].values() for t in ts} - {"none"}) == 1
        and not any("none" in t for ts in seen[r].values() for t in ts)
    ]
    sources = sorted({t.split()[1] for steps in seen.values() for ts in steps.values() for t in ts})
    text = (
        f"{len(seen)} requests in REQUESTS, {len(whole)} with all of {len(STEPS)} steps, "
        f"{len(one_trace)} under one trace id; told by {', '.join(sources)}"
    )
    return Figure(text, len(one_trace) == played.requests, {"sources": sources})


def _events(decoded: list[Decoded]) -> list[tuple[RequestEvent, str]]:
    return [
        (event, d.source)
        for d in decoded
        if isinstance(d.message, RequestEventsBatched)
        for event in d.message.events
    ]
