"""A bus that dies and a disk that fills: requests go on, and what is missing is known."""

import asyncio
import contextlib
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bus import subjects
from bus.errors import BusError
from bus.history import History
from bus.nats_bus import NatsBus
from bus.streams import KEPT_IN, ON_DISK
from components.replay.auditor import envelope
from schemas.fleet import ShowComponent, ShowComponentReply
from schemas.history import ShowHistory, ShowHistoryReply
from tests.show.fleet import Fleet
from tests.show.load import Told, tell, told
from tests.show.proof import Figure, Run, Skip, Void

FAST = ("--profile", "constant:ttft_ms=10,itl_ms=5")
#: Of the small disk, and what it grows to.
DISK_MIB, LARGER_MIB = 24, 256
#: Within this time a full disk must be known.
TOLD_S = 10.0
#: The engine that dies with the server.
ENGINE = "decode-0"

Line = tuple[str, str, int]
Life = tuple[str, int]
Missing = set[tuple[Line, int]]


@dataclass(frozen=True)
class Done:
    """How many requests were answered exactly, how many not, and how long they took."""

    exact: int
    failed: int
    pace: str


class Clients:
    """Eight clients that ask again as soon as they were answered, each answer known beforehand."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._done: list[Told] = []
        self._took_s: list[float] = []
        self._spans: dict[str, list[float]] = {}
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._ask(n * 100_000)) for n in range(8)]

    def mark(self, what: str) -> None:
        """All that was answered since the last mark was answered ``what``."""
        marked = sum(map(len, self._spans.values()))
        self._spans[what] = self._took_s[marked:]

    async def stop(self) -> Done:
        self._stopped = True
        await asyncio.gather(*self._tasks)
        for one in self._done:
            if not one.exact:
                print(f"not exact: {one.status} {one.error or one.finish}", flush=True)
        exact = sum(one.exact for one in self._done)
        pace = ", ".join(f"{_median_ms(took)} {what}" for what, took in self._spans.items())
        return Done(exact, len(self._done) - exact, f"a request took {pace}")

    async def _ask(self, seed: int) -> None:
        async with self._fleet.client() as client:
            while not self._stopped:
                seed += 1
                one, began_s = told(seed, 64, 120), time.monotonic()
                await tell(client, "sim/words", one)
                self._done.append(one)
                self._took_s.append(time.monotonic() - began_s)


def _median_ms(took_s: list[float]) -> str:
    return f"{statistics.median(took_s) * 1000:.0f} ms" if took_s else "-"


class Watch:
    """What each process said that it had published, by line: the most ever heard."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.published: dict[Line, int] = defaultdict(int)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(BusError):
                await self.look()
            await asyncio.sleep(0.5)

    def newest(self, source: str) -> Life:
        """The life of ``source`` that began last, among those that ever answered."""
        return source, max(epoch for _, name, epoch in self.published if name == source)

    async def look(self) -> set[Life]:
        """Ask everybody; who answered."""
        async with operator(self._fleet) as bus:
            replies = await bus.ask_all(
                subjects.show_component(subjects.EVERYONE),
                ShowComponent(),
                ShowComponentReply,
                wait_s=0.4,
            )
        for reply in replies:
            for kind, count in reply.message.published.items():
                line = (kind, reply.source, reply.epoch)
                self.published[line] = max(self.published[line], count)
        return {(reply.source, reply.epoch) for reply in replies}

    async def missing(self) -> Missing:
        """What was published by now and stands in no stream."""
        await self.look()
        published = dict(self.published)
        await asyncio.sleep(1.0)
        seen: Missing = set()
        page = self._fleet.page()
        async with History(page.nats_url, Path(page.keys_dir) / "history.nk") as history:
            for stream in ON_DISK:
                async for stored in history.read(stream):
                    found = envelope(stored.data)
                    if found is not None:
                        seen.add(found)
        return {
            (line, seq)
            for line, count in published.items()
            if KEPT_IN.get(line[0]) in ON_DISK
            for seq in range(1, count + 1)
            if (line, seq) not in seen
        }


@contextlib.asynccontextmanager
async def operator(fleet: Fleet) -> AsyncIterator[NatsBus]:
    page = fleet.page()
    key = Path(page.keys_dir) / "operator.nk"
    bus = NatsBus(
        page.nats_url,
        source="operator",
        epoch=time.time_ns() // 1_000_000,
        key_file=key,
        connect_timeout_s=2.0,
    )
    await bus.connect()
    try:
        yield bus
    finally:
        await bus.close()


async def history_of(fleet: Fleet) -> ShowHistoryReply | None:
    try:
        async with operator(fleet) as bus:
            return await bus.ask(
                subjects.show_history(), ShowHistory(), ShowHistoryReply, timeout_s=3
            )
    except BusError:
        return None


def reported(shown: ShowHistoryReply) -> Missing:
    """What the auditor says is missing, less what came after all."""
    found: Missing = set()
    for gap in shown.gaps:
        line = (gap.event, gap.source, gap.epoch)
        numbers = {(line, seq) for seq in range(gap.first_seq, gap.last_seq + 1)}
        found = found - numbers if gap.filled else found | numbers
    return found


async def settled(fleet: Fleet, within_s: float) -> ShowHistoryReply:
    """The history once it is ok and waits for nothing; raises ``Void`` when it never is."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        shown = await history_of(fleet)
        if shown is not None and shown.state == "ok" and shown.waiting == 0:
            return shown
        await asyncio.sleep(0.5)
    raise Void(f"the history is not whole within {within_s:g} s: {shown and shown.state}")


@dataclass(frozen=True)
class Afterwards:
    """What clients got, what is in no stream, and what the auditor says of it."""

    done: Done
    missing: Missing
    shown: ShowHistoryReply


async def kill_nats(run: Run) -> Figure:
    """SIGKILL nats-server three times while requests run; then count what is missing.

    It is stopped for a moment first, so that something is on its way to it and lost. With the last
    kill an engine dies, before anybody could ask what it had published.
    """
    async with Fleet(run.folder / "fleet", FAST, run.fault) as fleet, loaded(fleet) as load:
        for last in (False, False, True):
            await asyncio.sleep(3.0)
            await fleet.freeze("nats-server")
            await asyncio.sleep(0.3)
            dying = ["nats-server", ENGINE] if last else ["nats-server"]
            killed = load.watch.newest(ENGINE)
            await asyncio.gather(*map(fleet.kill, dying))
        await asyncio.sleep(4.0)
        after = await load.afterwards()
        named = await tails_of(fleet, killed)
        living = await load.watch.look()
    figure = _figure("3 kills of nats-server", after)
    names = sorted(source for source, _ in named) or "nobody"
    text = f"{figure.text}; last words unknown of {names}, {ENGINE} died with it"
    if len(named) > 1:
        text += f"; how others ended: {fleet.ends()}"
    right = killed in named and not named & living
    return replace(figure, text=text, holds=figure.holds and right)


async def tails_of(fleet: Fleet, killed: Life) -> set[Life]:
    """Whose lives are said to have ended without their last words, once ``killed`` may be."""
    deadline_s = time.monotonic() + 40
    named: set[Life] = set()
    while time.monotonic() < deadline_s and killed not in named:
        shown = await history_of(fleet)
        if shown is not None:
            named = {(tail.source, tail.epoch) for tail in shown.tails}
        await asyncio.sleep(0.5)
    return named


async def full_disk(run: Run) -> Figure:
    """A disk of 24 MiB under the streams fills while requests run; later it grows."""
    disk = run.folder / "fleet" / "nats"
    with small_disk(disk):
        async with Fleet(run.folder / "fleet", FAST, run.fault) as fleet, loaded(fleet) as load:
            await asyncio.sleep(3.0)
            load.clients.mark("before")
            ballast = disk / "ballast"
            fill(ballast)
            state, told_s = await degraded(fleet, 40)
            await asyncio.sleep(3.0)
            load.clients.mark("while it was full")
            resize(disk, LARGER_MIB)
            await asyncio.sleep(1.0)
            await settled(fleet, 60)
            await asyncio.sleep(3.0)
            after = await load.afterwards()
    figure = _figure(f"a disk of {DISK_MIB} MiB full", after)
    text = (
        f"{figure.text}; {after.done.pace}; the history was said to be {state} after"
        f" {told_s:.0f} s, and ok again without a human"
    )
    holds = figure.holds and state == "not_storing" and told_s <= TOLD_S
    return replace(figure, text=text, holds=holds)


@dataclass
class Load:
    """Clients, and somebody who hears what every process says it has published."""

    fleet: Fleet
    clients: Clients
    watch: Watch

    async def afterwards(self) -> Afterwards:
        """Stop the clients, wait until the auditor is sure, and look for oneself."""
        done = await self.clients.stop()
        await asyncio.sleep(6.0)
        await settled(self.fleet, 40)
        await self.watch.stop()
        missing = await self.watch.missing()
        return Afterwards(done, missing, await settled(self.fleet, 20))


@contextlib.asynccontextmanager
async def loaded(fleet: Fleet) -> AsyncIterator[Load]:
    load = Load(fleet, Clients(fleet), Watch(fleet))
    load.watch.start()
    load.clients.start()
    yield load


def _figure(what: str, after: Afterwards) -> Figure:
    done, missing, said = after.done, after.missing, reported(after.shown)
    unreported, wrongly = missing - said, said - missing
    text = (
        f"{what}: {done.exact} requests, {done.failed} failed; {len(missing)} events missing,"
        f" {len(missing) - len(unreported)} of them reported in {after.shown.gaps_total} gaps,"
        f" {len(wrongly)} reported wrongly"
    )
    holds = (
        done.failed == 0 and done.exact > 50 and not unreported and not wrongly and bool(missing)
    )
    return Figure(text, holds, {"unreported": len(unreported)})


async def degraded(fleet: Fleet, within_s: float) -> tuple[str, float]:
    began_s = time.monotonic()
    while time.monotonic() - began_s < within_s:
        shown = await history_of(fleet)
        if shown is not None and shown.state != "ok":
            return shown.state, time.monotonic() - began_s
        await asyncio.sleep(0.5)
    raise Void("nobody noticed that the disk was full")


# A small disk.


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={DISK_MIB}m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        raise Skip("no tmpfs may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def resize(folder: Path, mib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={mib}m", folder], check=True)


def fill(ballast: Path) -> None:
    """All that is left, to the last byte."""
    with ballast.open("wb", buffering=0) as file:
        block = b"\0" * 65_536
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
