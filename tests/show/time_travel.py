"""The journal run again elsewhere, and questions about the past that must not take long."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bus import codec, subjects
from bus.errors import AskTimedOut, NoResponders
from bus.history import History
from bus.nats_bus import NatsBus
from components.replay.bundle_reader import open_bundle
from components.replay.check import CORES, NOTHING, apply
from components.replay.recording import Recording
from components.replay.rerun import record
from schemas.fleet import ShowComponent, ShowComponentReply
from schemas.past import ExplainRequest, ExplainRequestReply, ShowInstant, ShowInstantReply
from tests.show import made_history
from tests.show.fleet import SWITCHYARD, Fleet
from tests.show.proof import Figure, Run, Void
from tests.show.python import planted

ENTRIES_PER_S = 50_000
PROFILE = ("--profile", "llama3-8b/tp1/h100", "--speed", "4")


async def switchyard(
    *words: object, fault: str | None = None, cwd: Path | None = None
) -> tuple[int, str]:
    """A command on its own: exit code, standard output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}
    process = await asyncio.create_subprocess_exec(
        *SWITCHYARD,
        *map(str, words),
        cwd=cwd,
        env=environment | planted(fault),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def replay_elsewhere(run: Run) -> Figure:
    """2,000 requests, exported; the yard ends, its folder goes; `replay run` on the file."""
    requests = 200 if run.quick or run.fault else 2_000
    bundle = await _exported(run, requests)
    code, out = await switchyard("replay", "run", "--json", "--bundle", bundle, cwd=run.folder)
    same = json.loads(out) if out else {}
    _, out = await switchyard(
        *("replay", "run", "--json", "--route", "round_robin", "--bundle", bundle), cwd=run.folder
    )
    other = json.loads(out) if out else {}
    lives = same.get("lives", [])
    decisions = sum(life["decisions"] for life in lives)
    exact = sum(life["decisions"] for life in lives if life["exact"])
    pace = _pace(await record(open_bundle(bundle), 0, 2**53))
    text = (
        f"{exact} of {decisions} decisions of {len(lives)} cores came out again"
        f" ({requests} requests, {bundle.stat().st_size / 2**20:.1f} MiB);"
        f" round_robin: {other.get('different')} of {other.get('compared')} placements differ,"
        f" {other.get('effect_ms_mean')} ms each; {pace.entries_per_s:,.0f} entries/s read and"
        f" applied; {pace.decisions_per_s:,.0f} decisions/s"
    )
    holds = (
        code == 0
        and len(lives) == 2
        and exact == decisions > 2 * requests
        and other.get("compared", 0) >= requests
        and pace.entries_per_s >= ENTRIES_PER_S
    )
    return Figure(text, holds, {"same": same, "other": other, "pace": asdict(pace)})


async def _exported(run: Run, requests: int) -> Path:
    """The incident as one file, and nothing else left of the yard that had it."""
    data, bundle = run.folder / "fleet", run.folder / "incident.zip"
    async with Fleet(data, ("--prefill", "2", "--decode", "2", *PROFILE), run.fault) as fleet:
        began_ms = time.time_ns() // 1_000_000
        code, _ = await switchyard(
            *("bench", "serve", "--url", fleet.url, "--requests", requests, "--json"),
            *("--concurrency", "32", "--prompt-tokens", "512", "--output-tokens", "64"),
        )
        await asyncio.sleep(0.5)
        if code != 0:
            raise Void("the load generator failed")
        code, _ = await switchyard("replay", "export", bundle, "--data", data, "--from", began_ms)
        if code != 0:
            raise Void("the export failed")
    shutil.rmtree(data)
    return bundle


@dataclass(slots=True)
class Pace:
    """Per second of one core's time, the fastest of three passes: others use this machine too."""

    entries: int
    entries_per_s: float
    decisions: int
    decisions_per_s: float


def _pace(recording: Recording) -> Pace:
    passes = [_pass(recording) for _ in range(3)]
    return max(passes, key=lambda one: one.entries_per_s)


def _pass(recording: Recording) -> Pace:
    """Entries that decided nothing, read from their bytes and applied; and apart, decisions.

    Reading is timed over the packed inputs and the message around them, as a bundle holds them.
    """
    entries = decisions = 0
    entries_s = decisions_s = 0.0
    for life in recording.lives():
        start = recording.start(life)
        core = CORES[start.component](start.owner, start.settings)
        core.restore(codec.unpack(start.state))
        for entry in recording.in_order(life):
            if entry.index <= start.index:
                continue
            wire = codec.encode(entry, traceparent=None, source=life[0], epoch=life[1], seq=1)
            began_s = time.process_time()
            decoded = codec.decode(wire).message
            apply(core, decoded, recording.events.get)  # type: ignore[arg-type]
            took_s = time.process_time() - began_s
            if entry.outcomes == NOTHING:
                entries, entries_s = entries + 1, entries_s + took_s
            else:
                decisions += len(codec.unpack(entry.outcomes))
                decisions_s += took_s
    return Pace(entries, entries / entries_s, decisions, decisions / decisions_s)


# Questions that must not take long.


async def explain_any(run: Run) -> Figure:
    """100,000 requests through real recorders; then any of them is asked about."""
    count = 20_000 if run.quick else 100_000
    async with made_history.server(run.folder) as nats:
        ids = await made_history.many_requests(nats, count)
        operator = await nats.bus("operator", "operator")
        async with made_history.replay_process(nats, planted(run.fault)):
            indexed_s = await _indexed(operator, count)
            rng = random.Random(4)
            chosen = [ids[0], ids[-1], *rng.sample(ids, 20 if run.fault else 300)]
            took_ms, right = [], 0
            for name in chosen:
                began_s = time.perf_counter()
                found = await operator.ask(
                    subjects.explain_request(),
                    ExplainRequest(request_id=name),
                    ExplainRequestReply,
                    timeout_s=60,
                )
                took_ms.append(1e3 * (time.perf_counter() - began_s))
                right += found.found and len(found.steps) == 7 and found.choices[1].saved_ms == 0.5
    worst_ms = max(took_ms)
    text = (
        f"{right} of {len(chosen)} of {count} requests explained with all steps and candidates;"
        f" median {statistics.median(took_ms):.1f} ms, worst {worst_ms:.0f} ms;"
        f" the index was read from the stream in {indexed_s:.1f} s"
    )
    return Figure(text, right == len(chosen) and worst_ms < 200, {"took_ms": took_ms})


async def _indexed(operator: NatsBus, count: int) -> float:
    """Until the index holds all of them; raises ``Void`` when it never does."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < 120:
        with contextlib.suppress(NoResponders, AskTimedOut):
            shown = await operator.ask(
                subjects.show_component("replay-0"),
                ShowComponent(),
                ShowComponentReply,
                timeout_s=5,
            )
            if shown.counters.get("indexed_requests", 0) >= count:
                return time.monotonic() - began_s
        await asyncio.sleep(0.1)
    raise Void("the index never held all requests")


async def any_instant(run: Run) -> Figure:
    """An hour of six engines and two cores; then the fleet at instants all over it."""
    seconds = 600 if run.quick else 3_600
    async with made_history.server(run.folder) as nats:
        hour = made_history.Hour(nats, seconds)
        began_s = time.monotonic()
        await hour.run()
        made_s = time.monotonic() - began_s
        await made_history.stored(nats, "ENGINE_STATE", hour.published)
        async with History(nats.url, nats.key_file("history", "history")) as history:
            held = {s: (await history.state(s)).messages for s in ("ENGINE_STATE", "JOURNAL")}
        operator = await nats.bus("operator", "operator")
        async with made_history.replay_process(nats, planted(run.fault)):
            await _answers(operator)
            took_ms, right = [], 0
            for truth in hour.truths:
                began_s = time.perf_counter()
                then = await operator.ask(
                    subjects.show_instant(),
                    ShowInstant(at_ms=truth.at_ms),
                    ShowInstantReply,
                    timeout_s=120,
                )
                took_ms.append(1e3 * (time.perf_counter() - began_s))
                right += _is_so(then, truth)
    worst_ms, asked = max(took_ms), len(hour.truths)
    text = (
        f"{right} of {asked} instants of {seconds // 60} min as they were"
        f" ({held['ENGINE_STATE']} engine reports, {held['JOURNAL']} journal entries, published in"
        f" {made_s:.0f} s); median {statistics.median(took_ms):.0f} ms, worst {worst_ms:.0f} ms"
    )
    return Figure(text, right == asked > 0 and worst_ms < 1000, {"took_ms": took_ms})


async def _answers(operator: NatsBus) -> None:
    began_s = time.monotonic()
    while time.monotonic() - began_s < 30:
        with contextlib.suppress(NoResponders, AskTimedOut):
            await operator.ask(
                subjects.show_instant(), ShowInstant(at_ms=1), ShowInstantReply, timeout_s=5
            )
            return
        await asyncio.sleep(0.1)
    raise Void("nobody answers for the past")


def _is_so(then: ShowInstantReply, truth: made_history.Truth) -> bool:
    return (
        {p.instance for p in then.processes} == truth.living
        and {e.engine for e in then.engines} == set(made_history.ENGINES)
        and not any(e.stale for e in then.engines)
        and [w.request_id for w in then.waiting] == truth.waiting
        and {p.request_id: p.worker for p in then.placed} == truth.placed
        and bool(truth.placed)
        and all(core.whole for core in then.cores)
        and len(then.cores) == 2
    )
