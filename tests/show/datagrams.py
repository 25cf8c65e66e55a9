"""Engine states by UDP: whatever a datagram is, and however many there are."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from bus import subjects
from bus.errors import NoResponders
from bus.history import History
from bus.nats_bus import NatsBus
from components.bridge.windows import DUPLICATE_S
from components.domain.signed_frame import sign
from schemas.engine import EngineStatesReceived, ShowStates, ShowStatesReply
from schemas.fleet import ShowComponent, ShowComponentReply
from tests.show import made_history
from tests.show.fleet import Fleet
from tests.show.proof import Figure, Run, Void
from tests.show.python import REPOSITORY, planted
from tests.support.nats import NatsInTest

ENGINES = 200
RATE_PER_S = 20_000
BUFFER_BYTES = 16 * 1024 * 1024
P99_MS = 20.0


# A corpus.

GOOD: dict[str, Any] = {
    "engine_id": "http://10.1.0.1:8000",
    "timestamp_ms": 0,
    "latency_pred_ms": 10.5,
    "scheduling_mode": "balanced",
    "pending_tokens_total": 100,
    "kv_cache_free_blocks": 1000,
    "kv_cache_total_blocks": 2000,
    "engine_capacity": 50_000.0,
}
KEY = bytes(range(32))


@dataclass(slots=True)
class Corpus:
    """Datagrams in order, and by how much each counter must have grown at the end.

    ``later``: those that come when the time for copies is over.
    """

    now_ms: int
    datagrams: list[bytes] = field(default_factory=list)
    later: list[bytes] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    latest: dict[str, int] = field(default_factory=dict)
    _seq: int = 0

    def plain(self, counter: str | None, raw: bytes | None = None, **fields: Any) -> None:
        """One plain datagram; with a ``counter`` it makes no event."""
        data = raw if raw is not None else json.dumps({**GOOD, **fields}).encode()
        self._add(data, counter, fields)

    def signed(
        self,
        counter: str | None,
        *,
        epoch: int,
        seq: int,
        sent_ms: int | None = None,
        **fields: Any,
    ) -> bytes:
        payload = json.dumps({**GOOD, "timestamp_ms": self.now_ms, **fields}).encode()
        data = sign(
            payload,
            key_id="k1",
            key=KEY,
            epoch=epoch,
            seq=seq,
            sent_ms=self.now_ms if sent_ms is None else sent_ms,
        )
        self._add(data, counter, fields)
        return data

    def again(self, counter: str, data: bytes, *, later: bool = False) -> None:
        (self.later if later else self.datagrams).append(data)
        self._count(counter, {})

    def _add(self, data: bytes, counter: str | None, fields: dict[str, Any]) -> None:
        self.datagrams.append(data)
        self._count(counter, fields)

    def _count(self, counter: str | None, fields: dict[str, Any]) -> None:
        self.counts["received_total"] += 1
        if counter is None:
            engine = fields.get("engine_id", GOOD["engine_id"])
            self.latest[engine] = fields.get("pending_tokens_total", GOOD["pending_tokens_total"])
            self.counts["valid_total"] += 1
            return
        self.counts[counter] += 1
        if counter.startswith("invalid_"):
            self.counts["invalid_total"] += 1
        elif counter.startswith("unbelieved_"):
            self.counts["unbelieved_total"] += 1
        else:
            self.counts["valid_total"] += 1  # well formed, and no news


def corpus(now_ms: int) -> Corpus:
    """Everything that a datagram may be."""
    made = Corpus(now_ms)
    made.plain(None, timestamp_ms=now_ms)
    never: list[Any] = [None, [], {}, True]
    for name in GOOD:
        made.plain("invalid_field_missing_total", raw=_without(name))
        for wrong in never:
            made.plain("invalid_wrong_type_total", None, **{name: wrong})
    for name in ("engine_id", "scheduling_mode"):
        made.plain("invalid_wrong_type_total", None, **{name: 5})
        made.plain("invalid_out_of_range_total", None, **{name: ""})
    made.plain("invalid_out_of_range_total", engine_id="x" * 257)
    made.plain("invalid_out_of_range_total", engine_id="a\nb")
    made.plain("invalid_out_of_range_total", scheduling_mode="fast")
    for name in (n for n in GOOD if n not in {"engine_id", "scheduling_mode"}):
        made.plain("invalid_wrong_type_total", None, **{name: "7"})
        made.plain("invalid_out_of_range_total", None, **{name: -2})
        made.plain("invalid_out_of_range_total", None, **{name: 2**62})
    for name in ("timestamp_ms", "pending_tokens_total", "kv_cache_free_blocks"):
        made.plain("invalid_wrong_type_total", None, **{name: 1.5})
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"01", b"+1", b"0x10"):
        broken = json.dumps({**GOOD, "latency_pred_ms": 0.125}).encode().replace(b"0.125", number)
        made.plain("invalid_not_json_total", raw=broken)
    whole = json.dumps(GOOD).encode()
    for raw in (b"", b"{", whole[:-1], whole[: len(whole) // 2], b"\xff\xfe", b"[" * 3000):
        made.plain("invalid_not_json_total", raw=raw)
    for raw in (b"[]", b"null", b'"x"', b"5", b"true"):
        made.plain("invalid_not_an_object_total", raw=raw)
    made.plain("invalid_too_long_total", raw=b"x" * 4097)
    made.plain("invalid_too_long_total", raw=b"{" + b" " * 65_000)
    _order(made, now_ms)
    _signatures(made, now_ms)
    return made


def _order(made: Corpus, now_ms: int) -> None:
    """Twice, out of order, of 1970, of the future, with fields that nobody knows."""
    one = "http://10.1.0.2:8000"
    made.plain(None, engine_id=one, timestamp_ms=now_ms, pending_tokens_total=7)
    made.plain("duplicates_total", engine_id=one, timestamp_ms=now_ms, pending_tokens_total=7)
    made.plain("reordered_total", engine_id=one, timestamp_ms=now_ms - 1, pending_tokens_total=8)
    made.plain(None, engine_id="http://10.1.0.3:8000", timestamp_ms=1_234_567_890)
    made.plain(None, engine_id="http://10.1.0.4:8000", timestamp_ms=now_ms + 10**9)
    made.plain(None, engine_id="http://10.1.0.5:8000", timestamp_ms=now_ms, note="x", more=1)
    made.counts["unknown_fields_total"] += 2


def _signatures(made: Corpus, now_ms: int) -> None:
    one = "http://10.1.0.6:8000"
    first = made.signed(None, epoch=5, seq=10, engine_id=one, pending_tokens_total=1)
    made.again("duplicates_total", first)
    made.again("unbelieved_replayed_total", first, later=True)
    made.signed(None, epoch=5, seq=12, engine_id=one, pending_tokens_total=2)
    made.signed("reordered_total", epoch=5, seq=11, engine_id=one, pending_tokens_total=3)
    made.signed("unbelieved_old_epoch_total", epoch=4, seq=99, engine_id=one)
    made.signed("unbelieved_clock_total", epoch=6, seq=1, engine_id=one, sent_ms=now_ms - 60_000)
    early = now_ms - 25_000  # what the bridge's clock would let pass, and its start does not
    made.signed("unbelieved_before_start_total", epoch=6, seq=1, engine_id=one, sent_ms=early)
    made.again("unbelieved_forged_total", first[:-1] + bytes([first[-1] ^ 1]))
    made.again("unbelieved_unknown_key_total", first.replace(b"k1", b"k7", 1))
    made.again("unbelieved_not_a_frame_total", first[:50])
    made.plain("outranked_total", engine_id=one, timestamp_ms=now_ms + 5)


def _without(name: str) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k != name}).encode()


async def every_kind(run: Run) -> Figure:
    """The corpus, through a running yard's own socket; what the bridge counted and holds."""
    keys = run.folder / "udp.keys"
    keys.write_text(f"k1 {KEY.hex()}\n")
    keys.chmod(0o600)
    async with Fleet(run.folder / "fleet", (), run.fault, bridge_keys_file=str(keys)) as fleet:
        before, pid = await _shown(fleet), fleet.pid("bridge-0")
        made = corpus(time.time_ns() // 1_000_000)
        host, _, port = fleet.page().udp.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data in made.datagrams:
                sender.sendto(data, (host, int(port)))
                await asyncio.sleep(0.0005)
            await asyncio.sleep(2 * DUPLICATE_S)
            for data in made.later:
                sender.sendto(data, (host, int(port)))
        await asyncio.sleep(0.5)
        after = await _shown(fleet)
        counters = await fleet.counters("bridge-0")
        alive = fleet.pid("bridge-0") == pid
    grown = Counter(after["totals"])
    grown.subtract(before["totals"])
    wrong = {n: (grown[n], c) for n, c in made.counts.items() if grown[n] != c}
    held = {e["state"]["engine_id"]: e["state"]["pending_tokens_total"] for e in after["engines"]}
    right = sum(held.get(engine) == pending for engine, pending in made.latest.items())
    faults = counters.get("faults_total", 0) + counters.get("bus_handler_errors_total", 0)
    text = (
        f"{made.counts['received_total']} datagrams, {len(made.counts)} counters: {len(wrong)}"
        f" wrong{f' {wrong}' if wrong else ''}; {right} of {len(made.latest)} latest states right;"
        f" {faults} exceptions"
    )
    return Figure(text, alive and not wrong and not faults and right == len(made.latest), {})


async def _shown(fleet: Fleet) -> dict[str, Any]:
    key = Path(fleet.page().keys_dir) / "operator.nk"
    bus = NatsBus(fleet.page().nats_url, source="operator", epoch=1, key_file=key)
    await bus.connect()
    try:
        reply = await bus.ask(
            subjects.show_states("bridge-0"), ShowStates(), ShowStatesReply, timeout_s=5
        )
        return reply.model_dump()
    finally:
        await bus.close()


# Load.


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
    async with made_history.server(run.folder) as nats, _bridge(nats, run) as port:
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
async def _bridge(nats: NatsInTest, run: Run) -> AsyncIterator[int]:
    """A bridge on the first core alone; its UDP port."""
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
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
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
