"""Engine states by UDP: whatever a datagram is."""

import asyncio
import json
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus import subjects
from bus.nats_bus import NatsBus
from components.bridge.windows import DUPLICATE_S
from components.domain.signed_frame import sign
from schemas.engine import ShowStates, ShowStatesReply
from tests.show.fleet import Fleet
from tests.show.proof import Figure, Run

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
