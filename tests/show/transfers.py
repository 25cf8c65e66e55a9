"""KV between real engines: exact, survived, freed."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bus.bus import Bus
from tests.show.fleet import until
from tests.show.proof import Figure, Run, Void
from tests.show.real import (
    Asked,
    RealFleet,
    answers_alone,
    apart,
    ask,
    ask_all,
    freed,
    lengths,
    prompts,
)

LOADED = "external_hit_tokens"
FREE_WITHIN_MS = 100.0
#: Leases and everything that waits for one are short here, so that "past the lease" is soon.
SHORT = {"worker_lease_ms": 2_000, "worker_hold_ms_max": 6_000, "worker_ready_wait_ms": 4_000}
SETTLED_S = 10.0


async def exact(run: Run) -> Figure:
    """64 prompts through gateway -> P -> D against one engine alone."""
    count = 16 if run.quick else 64
    asked = [Asked(p) for p in prompts(1, lengths(1, count, 5, 1500))]
    expected = await answers_alone(run.folder, asked)
    async with apart(run) as fleet:
        await ask_all(fleet, asked, 16)
        ids = await fleet.token_ids()
        loaded = (await fleet.counters("decode-0")).get(LOADED, 0)
    same = sum(ids.get(a.request_id) == e for a, e in zip(asked, expected, strict=True))
    tokens = sum(len(a.prompt) for a in asked)
    text = f"{same}/{count} with the same ids; {loaded} of {tokens} prompt tokens loaded"
    return Figure(text, same == count and loaded == tokens, {"same": same, "loaded": loaded})


# Somebody leaves.


async def left_alone(run: Run) -> Figure:
    """A client leaves its stream: how soon has each pool all its blocks back?"""
    rng = random.Random(5)
    count = 6 if run.quick else 24
    took: dict[str, list[float]] = {"prefill-0": [], "decode-0": []}
    async with apart(run) as fleet, fleet.operator() as bus, fleet.client() as client:
        name = await fleet.model_name()
        for place, prompt in enumerate(prompts(2, [1400] * count)):
            # By turns: while it decodes, and before its first token (computing, handing over).
            if place % 2:
                one = Asked(prompt, 600, leave_after=5)
            else:
                one = Asked(prompt, 600, leave_after=0, leave_after_s=rng.uniform(0.02, 0.25))
            await ask(client, name, one)
            if not one.left:
                raise Void(f"nobody left: {one.error or one.finish}")
            found = await asyncio.gather(*(freed(bus, e, 5.0) for e in took))
            for engine, seconds in zip(took, found, strict=True):
                took[engine].append(5.0 if seconds is None else seconds)
    worst = {e: max(s) * 1e3 for e, s in took.items()}
    parts = [f"{e}: median {_median(s) * 1e3:.0f} ms, worst {max(s) * 1e3:.0f} ms"
             for e, s in took.items()]  # fmt: skip
    text = f"{count} streams left; {'; '.join(parts)}"
    return Figure(text, max(worst.values()) < FREE_WITHIN_MS, dict(worst))


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


# Everything breaks.


@dataclass(slots=True)
class Load:
    """Greedy requests that never stop coming, some of whose clients leave."""

    pool: list[Asked]
    expected: list[list[int]]
    leave: float
    sent: list[tuple[int, Asked]] = field(default_factory=list)
    _rng: random.Random = field(default_factory=lambda: random.Random(7))

    async def run(self, fleet: RealFleet, name: str, at_a_time: int, stop: asyncio.Event) -> None:
        async with fleet.client() as client, asyncio.TaskGroup() as group:
            for _ in range(at_a_time):
                group.create_task(self._one_after_another(client, name, stop))

    async def _one_after_another(
        self, client: httpx.AsyncClient, name: str, stop: asyncio.Event
    ) -> None:
        while not stop.is_set():
            place = self._rng.randrange(len(self.pool))
            one = self.pool[place].again()
            if self._rng.random() < self.leave:
                one.leave_after = self._rng.choice([0, 0, 1, 5])
                one.leave_after_s = self._rng.uniform(0.0, 0.4)
            self.sent.append((place, one))
            await ask(client, name, one)

    @property
    def leavers(self) -> int:
        return sum(one.left for _, one in self.sent)

    def verdict(self, ids: dict[str, list[int]]) -> tuple[int, int, str]:
        """Of those that stayed: how many, how many exact, and what is wrong with the first."""
        stayed = [(p, a) for p, a in self.sent if not a.left]
        wrong = [
            a.error or f"{a.request_id}: {len(ids.get(a.request_id, []))} ids, other ones"
            for p, a in stayed
            if a.error or ids.get(a.request_id) != self.expected[p]
        ]
        return len(stayed), len(stayed) - len(wrong), wrong[0] if wrong else ""


async def aborts_and_link_faults(run: Run) -> Figure:
    """Clients leave and links break at random phases, under load."""
    aborts, breaks = (20, 10) if run.quick else (120, 50)
    load = await _load(run, leave=0.45)
    folder = run.folder / "links"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["LINK_FAULTS"] = str(folder)
    async with apart(run, "links_break_when_told", **SHORT) as fleet, fleet.operator() as bus:
        name = await fleet.model_name()
        stop = asyncio.Event()
        running = asyncio.create_task(load.run(fleet, name, 8, stop))
        broken = await _break_links(folder, breaks, lambda: load.leavers >= aborts)
        stop.set()
        hung = await _ended(running)
        after = await _after(fleet, bus, name)
        exact_text, exact = await _exact(fleet, load)
    text = f"{load.leavers} aborts, {broken} link faults; {exact_text}; {hung} hung; {after.text}"
    enough = load.leavers >= aborts and broken >= breaks
    return Figure(text, enough and exact and not hung and after.holds)


async def _load(run: Run, leave: float) -> Load:
    pool = [Asked(p, 32) for p in prompts(3, lengths(3, 32, 5, 1500))]
    return Load(pool, await answers_alone(run.folder, pool), leave)


async def _break_links(folder: Path, breaks: int, enough: Callable[[], bool]) -> int:
    """Ask for a broken link at random times; whoever uses a link next takes the request."""
    rng, asked = random.Random(11), 0
    until_s = time.monotonic() + 240
    while asked < breaks or not enough() or _pending(folder):
        if time.monotonic() > until_s:
            raise Void(f"only {asked} faults and not enough aborts in time")
        if asked < breaks and not _pending(folder):
            (folder / f"break-{asked}").touch()
            asked += 1
        await asyncio.sleep(rng.uniform(0.02, 0.3))
    return asked


def _pending(folder: Path) -> bool:
    return any(folder.iterdir())


async def _ended(running: asyncio.Task[None]) -> int:
    """Requests that did not end in two minutes: 1 stands for all of them."""
    done, _ = await asyncio.wait({running}, timeout=120)
    if not done:
        running.cancel()
        return 1
    running.result()
    return 0


async def _exact(fleet: RealFleet, load: Load) -> tuple[str, bool]:
    stayed, exact, wrong = load.verdict(await fleet.token_ids())
    text = f"{exact}/{stayed} exact" + (f" (first wrong: {wrong})" if wrong else "")
    return text, exact == stayed and stayed > 0


async def _after(fleet: RealFleet, bus: Bus, name: str) -> Figure:
    """Nothing is held past the lease, and the links work: a handover loads every token."""
    waits = await asyncio.gather(*(freed(bus, e, SETTLED_S) for e in fleet.engines))
    left = sum((await fleet.leases(bus)).values())
    before = (await fleet.counters("decode-0")).get(LOADED, 0)
    fresh = [Asked(p) for p in prompts(int(time.time()), [40, 300, 900])]
    await ask_all(fleet, fresh, 1, name)
    loaded = (await fleet.counters("decode-0")).get(LOADED, 0) - before
    tokens = sum(len(a.prompt) for a in fresh)
    free = [w is not None for w in waits]
    pools = f"{sum(free)}/{len(free)} pools whole"
    text = f"afterwards {pools}, {left} leases, {loaded}/{tokens} tokens over the links"
    return Figure(text, all(free) and not left and loaded == tokens)


# Processes die.


async def kills(run: Run) -> Figure:
    """SIGKILL P after a prefill and in mid-transfer, D before and during decode, under load."""
    rounds = 1 if run.quick else int(os.environ.get("SHOW_KILL_ROUNDS", "3"))
    load = await _load(run, leave=0.0)
    parts: list[str] = []
    # Engines die faster here than long prompts end: nobody is to be taken for poison by that.
    patience = {"gateway_interruptions_max": rounds * len(MOMENTS)}
    slow = apart(run, "transfers_are_slow", **SHORT, **patience)
    async with slow as fleet, fleet.operator() as bus:
        name = await fleet.model_name()
        stop = asyncio.Event()
        running = asyncio.create_task(load.run(fleet, name, 6, stop))
        for number in range(rounds * len(MOMENTS)):
            moment = MOMENTS[number % len(MOMENTS)]
            await moment.come(fleet, bus, load)
            old = fleet.pid(moment.victim)
            await fleet.kill_whole(moment.victim)
            parts.append(moment.name)
            await until(lambda: fleet.page().processes[moment.victim].pid not in {None, old},  # noqa: B023
                        20, "not started again")  # fmt: skip
            await _serves(fleet, bus, moment.victim)
        stop.set()
        hung = await _ended(running)
        after = await _after(fleet, bus, name)
        exact_text, exact = await _exact(fleet, load)
    count = len(parts)
    text = f"{count} kills ({', '.join(dict.fromkeys(parts))}); {exact_text}; {hung} hung"
    return Figure(f"{text}; {after.text}", exact and not hung and after.holds)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a process is killed."""

    name: str
    victim: str
    come: Callable[[RealFleet, Bus, Load], Awaitable[None]]


async def _lease_held(fleet: RealFleet, bus: Bus, engine: str) -> None:
    until_s = time.monotonic() + 60
    while not (await fleet.leases(bus)).get(engine):
        if time.monotonic() > until_s:
            raise Void(f"{engine} never held a lease")
        await asyncio.sleep(0.005)


async def _after_prefill(fleet: RealFleet, bus: Bus, load: Load) -> None:
    await _lease_held(fleet, bus, "prefill-0")


async def _mid_transfer(fleet: RealFleet, bus: Bus, load: Load) -> None:
    await _lease_held(fleet, bus, "prefill-0")
    await asyncio.sleep(0.25)  # a chunk takes 0.1 s, a long prompt has several
    await _lease_held(fleet, bus, "prefill-0")


async def _before_decode(fleet: RealFleet, bus: Bus, load: Load) -> None:
    await _lease_held(fleet, bus, "decode-0")


async def _during_decode(fleet: RealFleet, bus: Bus, load: Load) -> None:
    await until(lambda: any(a.first_s and not a.ended_s for _, a in load.sent), 60, "none decodes")


MOMENTS = (
    Moment("P after prefill", "prefill-0", _after_prefill),
    Moment("D before decode", "decode-0", _before_decode),
    Moment("P mid-transfer", "prefill-0", _mid_transfer),
    Moment("D during decode", "decode-0", _during_decode),
)


async def _serves(fleet: RealFleet, bus: Bus, engine: str) -> None:
    """The engine that was started again is there, as the registry hears it."""
    until_s = time.monotonic() + 120
    while engine not in await fleet.leases(bus):
        if time.monotonic() > until_s:
            raise Void(f"{engine} did not come back")
        await asyncio.sleep(0.2)
