"""Engine states by UDP: however many there are."""

import asyncio
import contextlib
import gc
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack

from bus import subjects
from bus.errors import NoResponders
from bus.history import History
from bus.nats_bus import NatsBus
from schemas.engine import EngineStatesReceived
from schemas.fleet import ShowComponent, ShowComponentReply
from tests.show import made_history
from tests.show.proof import Figure, Run, Void
from tests.show.python import REPOSITORY, planted
from tests.support.nats import NatsInTest

ENGINES = 200
RATE_PER_S = 20_000
BUFFER_BYTES = 16 * 1024 * 1024
P99_MS = 20.0


@dataclass(slots=True)
class Listener:
    """Hears what the bridge publishes; the age of each datagram, in ms of wall time."""

    ages_ms: list[int] = field(default_factory=list)
    states: int = 0

    def heard(self, subject: str, data: bytes) -> None:
        del subject
        now_ms = time.time_ns() // 1_000_000
        states = msgpack.unpackb(data)[6]
        self.states += len(states)
        self.ages_ms += [now_ms - state[1] for state in states]

    def p99_ms(self) -> float:
        """Of what was heard since the last time that this was asked."""
        ages, self.ages_ms = sorted(self.ages_ms), []
        return float(ages[int(len(ages) * 0.99)]) if ages else float("inf")


async def load(run: Run) -> Figure:
    """20,000/s for 30 s from 200 engines, then five times that for 5 s, then 20,000/s again."""
    seconds = 5 if run.quick or run.fault else 30
    async with (
        _a_core_apart() as core,
        made_history.server(run.folder) as nats,
        _bridge(nats, run, core) as port,
    ):
        listener, operator = Listener(), await nats.bus("operator", "operator")
        registry = await nats.client("registry", "registry-0")
        await registry.subscribe("yard.evt.engine.states_received.*", cb=_cb(listener))
        await _ready(operator)
        gc.collect()
        gc.freeze()  # as processes of a yard do; the listener is one of them here
        steady = await _send(port, RATE_PER_S, seconds)
        await asyncio.sleep(1.0)
        steady_ms, first = listener.p99_ms(), await _totals(operator)
        flood = await _send(port, 5 * RATE_PER_S, 5)
        await asyncio.sleep(2.0)
        listener.p99_ms()
        between = await _totals(operator)
        again = await _send(port, RATE_PER_S, 3)
        await asyncio.sleep(1.0)
        again_ms, last = listener.p99_ms(), await _totals(operator)
        await asyncio.sleep(1.0)
        stored = await _stored_states(nats)
    sent = steady.sent + flood.sent + again.sent
    accounted = stored + _rejected(last) + last["kernel_dropped_total"]
    recovered = _rejected(last) == _rejected(between) and (
        last["kernel_dropped_total"] == between["kernel_dropped_total"]
    )
    text = (
        f"{steady.sent} at {steady.rate:,.0f}/s: {first['kernel_dropped_total']} dropped by the"
        f" kernel (buffer {last['receive_buffer_bytes'] / 2**20:.0f} MiB as it counts),"
        f" {_rejected(first)} rejected, p99 {steady_ms:.0f} ms; {flood.sent} at"
        f" {flood.rate:,.0f}/s: {_rejected(between) - _rejected(first)} rejected,"
        f" {between['kernel_dropped_total'] - first['kernel_dropped_total']} dropped; then"
        f" {again.sent} with p99 {again_ms:.0f} ms; sent {sent} = accounted {accounted}"
    )
    holds = (
        sent == accounted
        and first["kernel_dropped_total"] == _rejected(first) == 0
        and steady.rate > 0.95 * RATE_PER_S
        and steady_ms < P99_MS
        and again_ms < P99_MS
        and recovered
    )
    return Figure(text, holds, {"first": first, "between": between, "last": last})


@dataclass(frozen=True, slots=True)
class Sent:
    sent: int
    rate: float


async def _send(port: int, rate_per_s: int, seconds: int) -> Sent:
    sender = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.show.udp_sender"),
        *map(str, (port, ENGINES, rate_per_s, seconds)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await sender.communicate()
    if sender.returncode != 0:
        raise Void("the sender failed")
    sent, took_s = out.split()
    return Sent(int(sent), int(sent) / float(took_s))


def _cb(listener: Listener) -> Any:
    async def heard(message: Any) -> None:
        listener.heard(message.subject, message.data)

    return heard


@asynccontextmanager
async def _a_core_apart() -> AsyncIterator[int]:
    """The first core; this process, and what it starts from now on, keep off it if they can."""
    first, *others = cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or cores)
    try:
        yield first
    finally:
        os.sched_setaffinity(0, cores)


@asynccontextmanager
async def _bridge(nats: NatsInTest, run: Run, core: int) -> AsyncIterator[int]:
    """A bridge on ``core`` alone; its UDP port."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")},
        **planted(run.fault),
        "NATS_URL": nats.url,
        "SWITCHYARD_HOST_NATS_KEY_FILE": str(nats.key_file("bridge", "bridge-0")),
        "SWITCHYARD_BRIDGE_BIND_ADDRESS": "127.0.0.1",
        "SWITCHYARD_BRIDGE_UDP_PORT": str(port := _free_udp_port()),
        "SWITCHYARD_BRIDGE_RECEIVE_BUFFER_BYTES": str(BUFFER_BYTES),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "components.cli", "bridge"),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _ready(operator: NatsBus) -> None:
    for _ in range(200):
        with contextlib.suppress(NoResponders):
            await _totals(operator)
            return
        await asyncio.sleep(0.05)
    raise Void("the bridge did not start")


async def _totals(operator: NatsBus) -> dict[str, int]:
    """The bridge's counters, as it counts them for `switchyard status`."""
    await asyncio.sleep(1.1)  # the kernel's count is looked at once a second
    reply = await operator.ask(
        subjects.show_component("bridge-0"), ShowComponent(), ShowComponentReply, timeout_s=10
    )
    return Counter(reply.counters)


def _rejected(totals: dict[str, int]) -> int:
    """What the bridge refused or found to be no news, and what its bus could not take."""
    names = (
        "rate_limited_total",
        "invalid_total",
        "unbelieved_total",
        "reordered_total",
        "duplicates_total",
        "engines_ignored_total",
        "bus_dropped_total",
    )
    return sum(totals[name] for name in names)


async def _stored_states(nats: NatsInTest) -> int:
    async with History(nats.url, nats.key_file("history", "history")) as history:
        return sum([_states_in(s.data) async for s in history.read("ENGINE_STATE")])


def _states_in(data: bytes) -> int:
    schema_id, *_, states = msgpack.unpackb(data)
    return len(states) if schema_id == EngineStatesReceived.schema_id else 0
