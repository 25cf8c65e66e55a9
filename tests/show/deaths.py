"""Processes die while requests run and wait: every token must come out all the same."""

import asyncio

from components.replay.recording import Recording
from schemas.engine import EngineLoadReported
from tests.show.fleet import Fleet, until
from tests.show.load import Told, summary, tell_all, told
from tests.show.proof import Figure, Run, Void

MODEL = "sim/words"
RUN_AT_LEAST = 20
WAIT_AT_LEAST = 20
VICTIMS = ("scheduler-0", "router-0", "registry-0", "decode-0")


async def kill_each(run: Run) -> Figure:
    """SIGKILL each victim with 20 requests running and 20 waiting."""
    recording, parts, told_all = await _kills(run)
    _recordings[run.fault] = recording
    exact = sum(s.exact for s in told_all)
    text = f"{exact}/{len(told_all)} exact; {'; '.join(parts)}"
    return Figure(text, exact == len(told_all))


_recordings: dict[str | None, Recording] = {}


async def recording_with_kills(run: Run) -> Recording:
    """The history of a run with kills; made when no proof of this process has made one."""
    if run.fault not in _recordings:
        _recordings[run.fault] = (await _kills(run))[0]
    return _recordings[run.fault]


async def _kills(run: Run) -> tuple[Recording, list[str], list[Told]]:
    # 24 places on the one decode engine: 24 run, the rest waits in the scheduler's queue.
    arguments = ("--profile", "constant:ttft_ms=20,itl_ms=20")
    fleet = Fleet(run.folder / "fleet", arguments, run.fault, worker_seqs_max=24)
    parts: list[str] = []
    everything: list[Told] = []
    async with fleet, fleet.client() as client:
        for number, victim in enumerate(VICTIMS):
            stories = [told(1000 * number + i, 64, 150) for i in range(60)]
            load = asyncio.create_task(tell_all(client, MODEL, stories))
            await until(
                lambda: (
                    sum(s.runs for s in stories) >= RUN_AT_LEAST  # noqa: B023
                    and sum(s.waits for s in stories) >= WAIT_AT_LEAST  # noqa: B023
                ),
                20,
                f"there were never {RUN_AT_LEAST} requests running and {WAIT_AT_LEAST} waiting",
            )
            running, waiting = sum(s.runs for s in stories), sum(s.waits for s in stories)
            await fleet.kill(victim)
            await asyncio.wait_for(load, 120)
            parts.append(f"{victim} ({running} running, {waiting} waiting): {summary(stories)}")
            everything += stories
            await until(lambda: fleet.page().processes[victim].pid is not None, 10, "no restart")  # noqa: B023
        await asyncio.sleep(1.0)
        recording = Recording()
        for stream in ("JOURNAL", "ENGINE_STATE", "REQUESTS"):
            for decoded in await fleet.history(stream):
                recording.add(decoded)
    return recording, parts, everything


async def kill_prefill_in_handoff(run: Run) -> Figure:
    """Kill P after its OFFER and before READY: the bytes take 3 s, so there is time."""
    arguments = ("--profile", "constant:ttft_ms=10,itl_ms=5")
    fleet = Fleet(run.folder / "fleet", arguments, run.fault, worker_transfer_latency_ms=3000)
    async with fleet, fleet.client() as client:
        stories = [told(seed, 64, 40) for seed in range(3)]
        load = asyncio.create_task(tell_all(client, MODEL, stories))
        leases = await _leases_seen(fleet, "prefill-0", at_least=1)
        if any(s.first_s for s in stories):
            raise Void("the handoff was over before the kill")
        await fleet.kill("prefill-0")
        done, _ = await asyncio.wait({load}, timeout=30)
        finished = bool(done)
        load.cancel()
        left = await _leases_left(fleet)
    text = f"killed with {leases} leases held; {summary(stories)}; leases left {left}"
    return Figure(text, finished and all(s.exact for s in stories) and left == 0)


async def _leases_seen(fleet: Fleet, engine: str, at_least: int) -> int:
    for _ in range(200):
        held = await _leases(fleet)
        if held.get(engine, 0) >= at_least:
            return held[engine]
        await asyncio.sleep(0.02)
    raise Void(f"{engine} never held a lease")


async def _leases_left(fleet: Fleet) -> int:
    """Leases over all engines once they had the time of one lease to go."""
    left = -1
    for _ in range(60):
        left = sum((await _leases(fleet)).values())
        if left == 0:
            return 0
        await asyncio.sleep(0.25)
    return left


async def _leases(fleet: Fleet) -> dict[str, int]:
    """The last report of each engine's present life."""
    last: dict[str, EngineLoadReported] = {}
    for decoded in await fleet.history("ENGINE_STATE"):
        if isinstance(decoded.message, EngineLoadReported):
            last[decoded.message.engine] = decoded.message
    return {engine: report.leases for engine, report in last.items()}


async def freeze_a_worker(run: Run) -> Figure:
    """SIGSTOP the engine that streams; another finishes; SIGCONT: its late tokens are dropped."""
    arguments = ("--profile", "constant:ttft_ms=10,itl_ms=25", "--prefill", "1", "--decode", "2")
    fleet = Fleet(run.folder / "fleet", arguments, run.fault)
    async with fleet, fleet.client() as client:
        stories = [told(seed, 48, 160) for seed in range(8)]
        load = asyncio.create_task(tell_all(client, MODEL, stories))
        await until(lambda: all(s.last_index > 10 for s in stories), 20, "the streams did not run")
        pid = await fleet.freeze("decode-0")
        cut = [s.last_index for s in stories]
        await asyncio.sleep(2.6)  # it is given up after 2 s of silence; the others go on meanwhile
        fleet.thaw(pid)
        await asyncio.wait_for(load, 60)
        await asyncio.sleep(0.5)
        late = (await fleet.counters("gateway-0")).get("late_tokens_total", 0)
    text = f"frozen at tokens {min(cut)} to {max(cut)}; {summary(stories)}; {late} late tokens"
    return Figure(f"{text} dropped", all(s.exact for s in stories) and late > 0)
