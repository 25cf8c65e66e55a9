"""Histories made at speed: the live cores, journals and recorders on a bus, with a clock of ours.

What is published goes the way that a running yard's messages go, so streams hold what they would
hold; only the time between messages is left out.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus import subjects
from bus.bus import Received
from bus.history import History
from bus.nats_bus import NatsBus
from components.domain.outcomes import Answer, Ask, Core, Send
from components.host.clock import Clock, ManualClock, SystemClock
from components.host.core_runner import CoreRunner
from components.host.counters import Counters
from components.host.host import Host
from components.host.recorder import Recorder
from components.host.settings import HostSettings, Settings
from components.host.tasks import Tasks
from components.router.core import RouterCore
from components.router.settings import RouterSettings
from components.scheduler.core import SchedulerCore
from components.scheduler.settings import SchedulerSettings
from schemas.attempt import AttemptReported, RunAttempt
from schemas.engine import EngineLoadReported
from schemas.examples import CARD, HEARTBEAT, LOAD, example
from schemas.fleet import FleetJoined, FleetLeft, HeartbeatSent
from schemas.message import Message
from schemas.request import ScheduleRequest
from schemas.routing import RouteWindow, RouteWindowReply
from tests.show.proof import Void
from tests.support.nats import KeyRing, NatsInTest, PackagedServer, running

STEP_S: Final = 0.25
ENGINES: Final = ("prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2", "decode-3")
#: How long a request takes to its end, in steps.
LASTS: Final = 9


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[NatsInTest]:
    """A nats-server with keys, permissions and empty streams."""
    (folder / "keys").mkdir(parents=True)
    ring = KeyRing(folder / "keys")
    process = PackagedServer(folder / "nats", users=tuple(ring.users.values()))
    async with running(process, ring) as nats:
        await nats.provision()
        yield nats


@asynccontextmanager
async def replay_process(nats: NatsInTest, planted: dict[str, str]) -> AsyncIterator[None]:
    """`switchyard replay serve`, as `up` would run it."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")},
        **planted,
        "NATS_URL": nats.url,
        "SWITCHYARD_HOST_NATS_KEY_FILE": str(nats.key_file("replay", "replay-0")),
        "SWITCHYARD_REPLAY_HISTORY_KEY_FILE": str(nats.key_file("history", "history")),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "components.cli", "replay", "serve"),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def host_on(bus: NatsBus, component: str, clock: Clock, faults: list[BaseException]) -> Host:
    """A host as ``components.host.process`` makes one."""
    counters = Counters()
    return Host(
        component=component,
        instance=bus.source,
        epoch=bus.epoch,
        bus=bus,
        clock=clock,
        tasks=Tasks(clock, faults.append),
        recorder=Recorder(bus, clock, counters),
        counters=counters,
        settings=HostSettings(instance=bus.source),
        on_fault=faults.append,
    )


async def stored(nats: NatsInTest, stream: str, count: int) -> None:
    """Return when the stream holds so many messages; raises ``Void`` when it never does."""
    async with History(nats.url, nats.key_file("history", "history")) as history:
        deadline_s = time.monotonic() + 60
        while (held := (await history.state(stream)).messages) < count:
            if time.monotonic() > deadline_s:
                raise Void(f"{stream} holds {held} of {count} messages")
            await asyncio.sleep(0.05)


@dataclass(slots=True)
class Truth:
    """What was so at ``at_ms``: by the scheduler itself."""

    at_ms: int
    waiting: list[str]
    placed: dict[str, str]
    living: set[str]


@dataclass(slots=True)
class Attempt:
    """A dispatched attempt on its way through its engine."""

    run: RunAttempt
    begun: int


class Hour:
    """A yard of six engines, two requests a second; ``run`` lets it live for ``seconds``."""

    def __init__(self, nats: NatsInTest, seconds: int, truth_every_s: int = 60) -> None:
        self.truths: list[Truth] = []
        #: Engine reports that were published.
        self.published = 0
        self._nats = nats
        self._seconds = seconds
        self._truth_steps = round(truth_every_s / STEP_S)
        self._began_ms = time.time_ns() // 1_000_000 - seconds * 1000
        self._clock = ManualClock(now_s=10_000.0, wall_ms=self._began_ms)
        self._buses: dict[str, NatsBus] = {}
        self._runners: dict[str, CoreRunner] = {}
        self._hosts: dict[str, Host] = {}
        self._attempts: list[Attempt] = []
        self._at: dict[tuple[str, str], str] = {}
        self._loads = dict.fromkeys(ENGINES, 0)
        self._epochs = dict.fromkeys(ENGINES, self._began_ms)
        self._faults: list[BaseException] = []

    async def run(self) -> None:
        """Raises what a core raised."""
        for component in ("scheduler", "router", "gateway", "registry"):
            name = f"{component}-0"
            self._buses[name] = bus = await self._nats.bus(component, name)
            self._hosts[name] = host_on(bus, component, self._clock, self._faults)
        for name in ENGINES:
            self._buses[name] = await self._nats.bus("worker", name, epoch=self._began_ms)
        scheduler, router = SchedulerSettings(), RouterSettings()
        self._scheduler = SchedulerCore("scheduler-0", scheduler)
        self._run_core("scheduler", self._scheduler, scheduler, scheduler.snapshot_s)
        self._run_core("router", RouterCore("router-0", router), router, router.snapshot_s)
        for name in (*ENGINES, "scheduler-0", "router-0"):
            self._joined(name)
        for step in range(round(self._seconds / STEP_S)):
            self._step(step)
            await self._clock.run_for(STEP_S, turns=3)
            await self._flushed()
            if step % self._truth_steps == min(100, self._truth_steps - 1):
                self.truths.append(self._truth())
        await self._flushed()
        for host in self._hosts.values():
            await host.tasks.stop()
        if self._faults:
            raise self._faults[0]

    def _run_core(self, component: str, core: Core, settings: Settings, snapshot_s: float) -> None:
        host = self._hosts[f"{component}-0"]
        runner = CoreRunner(host, core, self._perform, settings, tick_s=0.1, snapshot_s=snapshot_s)
        self._runners[component] = runner
        runner.start()

    async def _flushed(self) -> None:
        """What was said in this step is stored before what is said in the next one.

        Time passes some two hundred times as fast as it does: without this, what takes a
        millisecond between two connections would look like clocks that disagree by as many steps.
        """
        await asyncio.gather(*(bus.flush(10) for bus in self._buses.values()))

    # What happens in one step.

    def _step(self, step: int) -> None:
        for name in ENGINES:
            self._feed(self._beat(name), "scheduler", "router")
        router = example(HeartbeatSent, component="router", instance="router-0", owns=(LOAD.model,))
        self._feed(router, "scheduler")
        if step % 2 == 0:
            for name in ENGINES:
                self._report(name)
        if step % 2 == 1 and step > 8:
            self._request(step)
        self._go_on(step)
        if step % 2400 == 1200:
            self._restart(ENGINES[step // 2400 % len(ENGINES)])

    def _beat(self, name: str) -> HeartbeatSent:
        role = name.split("-", 1)[0]
        changes = {"instance": name, "role": role, "process_epoch": self._epochs[name]}
        return HEARTBEAT.model_copy(update={**changes, "running": 0})

    def _report(self, name: str) -> None:
        bus, wall_ms = self._buses[name], self._clock.wall_ms()
        load = LOAD.model_copy(
            update={
                "engine": name,
                "engine_epoch": self._epochs[name],
                "role": name.split("-", 1)[0],
                "running": self._loads[name],
                "waiting": 0,
                "admitted": (),
                "router_epoch_max": 0,
                "at_ms": wall_ms,
            }
        )
        bus.publish(subjects.engine_load_reported(name), load)
        self.published += 1
        seq = bus._seqs[load.schema_id]
        self._runners["router"].feed(_received(load, name, bus.epoch, seq))

    def _request(self, step: int) -> None:
        name = f"req-{step:08d}"
        card = CARD.model_copy(
            update={"request_id": name, "attempt": 1, "gateway": "gateway-0", "choices": 1}
        )
        recorder = self._hosts["gateway-0"].recorder
        recorder.record(name, "accepted", 1, detail={"model": card.model, "tenant": card.tenant})
        self._runners["scheduler"].feed_message(ScheduleRequest(card=card))

    def _go_on(self, step: int) -> None:
        """Attempts are accepted when they are new, and end after a while."""
        for attempt in self._attempts:
            if attempt.begun < 0:
                attempt.begun = step
                self._said(attempt, "accepted")
            elif step - attempt.begun == LASTS:
                self._said(attempt, "ended")
                if attempt.run.phase != "prefill":
                    self._hosts["gateway-0"].recorder.record(
                        attempt.run.card.request_id, "finished", 1, detail={"e2e_ms": 2250.0}
                    )
        self._attempts = [a for a in self._attempts if step - a.begun < LASTS]

    def _said(self, attempt: Attempt, state: str) -> None:
        run, worker = attempt.run, self._worker_of(attempt.run)
        self._loads[worker] += 1 if state == "accepted" else -1
        report = example(
            AttemptReported,
            request_id=run.card.request_id,
            attempt=1,
            phase=run.phase,
            state=state,
            worker=worker,
            worker_epoch=run.worker_epoch,
            router=run.router,
            router_epoch=run.router_epoch,
            nack=None,
            finish=None,
        )
        self._feed(report, "scheduler", "router")

    def _worker_of(self, run: RunAttempt) -> str:
        return self._at[(run.card.request_id, run.phase)]

    def _restart(self, name: str) -> None:
        registry, wall_ms = self._buses["registry-0"], self._clock.wall_ms()
        left = example(
            FleetLeft, instance=name, process_epoch=self._epochs[name], at_ms=wall_ms, lost=True
        )
        registry.publish(subjects.fleet_left(name), left)
        self._epochs[name] = wall_ms
        self._loads[name] = 0
        self._attempts = [a for a in self._attempts if self._worker_of(a.run) != name]
        self._joined(name)

    def _joined(self, name: str) -> None:
        epoch = self._epochs.get(name) or self._buses[name].epoch
        joined = example(
            FleetJoined,
            component="worker" if name in ENGINES else name.split("-", 1)[0],
            instance=name,
            process_epoch=epoch,
            at_ms=self._clock.wall_ms(),
        )
        self._buses["registry-0"].publish(subjects.fleet_joined(name), joined)

    # Between the two cores.

    def _feed(self, message: Message, *cores: str) -> None:
        for core in cores:
            self._runners[core].feed_message(message)

    def _perform(self, outcome: Send | Ask | Answer) -> None:
        message = outcome.message
        if isinstance(message, RouteWindow):
            self._feed(message, "router")
        elif isinstance(message, RouteWindowReply):
            self._feed(message, "scheduler")
        elif isinstance(message, RunAttempt):
            self._at[(message.card.request_id, message.phase)] = outcome.to[0]
            self._attempts.append(Attempt(message, -1))

    def _truth(self) -> Truth:
        core = self._scheduler
        return Truth(
            at_ms=self._clock.wall_ms() - 1,  # the next step begins in this millisecond
            waiting=[r for shard in core.shards.values() for r in shard.queue],
            placed={r: e.plan.worker for r, e in core.requests.items() if e.plan},
            living={*ENGINES, "scheduler-0", "router-0"},
        )


def _received(message: EngineLoadReported, source: str, epoch: int, seq: int) -> Received[Message]:
    return Received(message, "", source, epoch, seq, None)


async def many_requests(nats: NatsInTest, count: int, *, per_turn: int = 200) -> list[str]:
    """``count`` requests with all their steps, recorded by four processes; their ids in order."""
    faults: list[BaseException] = []
    clock = SystemClock()
    recorders = [
        host_on(await nats.bus(component, name), component, clock, faults).recorder
        for component, name in (
            ("gateway", "gateway-0"),
            ("scheduler", "scheduler-0"),
            ("router", "router-0"),
            ("worker", "decode-0"),
        )
    ]
    ids = [f"req-{number:024x}" for number in range(count)]
    for first in range(0, count, per_turn):
        for name in ids[first : first + per_turn]:
            _story(name, *recorders)
        await asyncio.sleep(0.012)  # batches leave after 10 ms, as they do under load
        if first % (per_turn * 20) == 0:
            await asyncio.gather(*(r._bus.flush(10) for r in recorders))
    for recorder in recorders:
        recorder.flush()
        await recorder._bus.flush(10)
    return ids


def _story(
    name: str, gateway: Recorder, scheduler: Recorder, router: Recorder, worker: Recorder
) -> None:
    gateway.record(
        name, "accepted", 1, detail={"model": "m", "tenant": "default", "prompt_tokens": 512}
    )
    scheduler.record(name, "scheduled", 1, detail={"window": 1, "queue_ms": 0.25})
    router.record(
        name,
        "routed",
        1,
        detail={
            "policy": "least_loaded",
            "chosen": ["prefill-0", "decode-0"],
            "candidates": [*ENGINES],
            "prefill_candidates": 2,
            "loads": [0, 1, 2, 3, 4, 5],
            "rooms": [16, 15, 30, 29, 28, 27],
            "queued_tokens": [0, 512, 0, 0, 0, 0],
            "free_pages": [100, 200, 300, 400, 500, 600],
            "state_seqs": [11, 12, 13, 14, 15, 16],
            "state_ages_ms": [1, 2, 3, 4, 5, 6],
            "costs_ms": [20.0, 25.0, 9.0, 9.5, 10.0, 10.5],
        },
    )
    router.record(name, "dispatched", 1, detail={"worker": "decode-0", "dispatch_seq": 1})
    worker.record(name, "handed_over", 1, detail={"from": "prefill-0", "ms": 1.5})
    gateway.record(name, "first_token", 1, detail={"ttft_ms": 24.0, "worker": "decode-0"})
    gateway.record(name, "finished", 1, detail={"completion_tokens": 64, "e2e_ms": 400.0})
