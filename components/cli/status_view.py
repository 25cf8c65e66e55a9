"""What `switchyard status` found, judged and laid out. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from components.cli.columns import columns, duration
from schemas.fleet import (
    EngineEntry,
    FleetRegistered,
    HeartbeatSent,
    ShowComponentReply,
    ShowFleetReply,
)

#: States in which a process does its work; the others are said to be a problem.
WELL: Final = frozenset({"ready"})


@dataclass(frozen=True, slots=True)
class StreamState:
    """What one stream holds."""

    name: str
    messages: int
    bytes: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class BusState:
    """The bus as the operator sees it; ``missing`` says of streams, ``error`` of all, why not."""

    url: str
    connected: bool = False
    server_version: str = ""
    jetstream: bool = False
    streams: tuple[StreamState, ...] = ()
    missing: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class ComponentState:
    """One process: what it says itself, or what the registry last heard of it."""

    component: str
    instance: str
    state: str
    pid: int | None = None
    host: str = ""
    since_ms: int | None = None
    epoch: int | None = None
    role: str | None = None
    model: str | None = None
    address: str | None = None
    owns: tuple[str, ...] = ()
    running: int = 0
    answers: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was found at ``at_ms``."""

    at_ms: int
    url: str
    components: tuple[ComponentState, ...]
    engines: tuple[EngineEntry, ...]
    bus: BusState
    registry_answers: bool
    #: Engines outside Switchyard that a bridge knows of.
    registered: tuple[FleetRegistered, ...] = ()

    def problems(self) -> list[str]:
        """What is missing or not well, one sentence each; empty when all is."""
        return [
            *self._bus_problems(),
            *(f"{c.instance}: {c.state}" for c in self.components if c.state not in WELL),
            *(
                f"engine {e.engine}: no report for {e.age_ms} ms"
                for e in self.engines
                # The state of somebody else's engine may go stale: it is not ours to keep alive.
                if e.stale and e.load is not None
            ),
        ]

    def _bus_problems(self) -> Iterator[str]:
        if not self.bus.connected:
            yield f"no connection to {self.bus.url}: {self.bus.error}"
        elif not self.registry_answers:
            yield "the registry does not answer: engines are not known"
        if self.bus.connected and not self.bus.jetstream:
            yield f"JetStream does not answer: {self.bus.error or 'no history is kept'}"
        elif self.bus.connected:
            yield from (f"stream {why}" for why in self.bus.missing)

    def to_plain(self) -> dict[str, Any]:
        """For ``--json``."""
        problems = self.problems()
        return {
            "ok": not problems,
            "problems": problems,
            "at_ms": self.at_ms,
            "url": self.url,
            "components": [asdict(component) for component in self.components],
            "engines": [engine.model_dump(mode="json") for engine in self.engines],
            "registered": [engine.model_dump(mode="json") for engine in self.registered],
            "bus": asdict(self.bus),
        }


def components_of(
    shown: Sequence[ShowComponentReply],
    fleet: ShowFleetReply | None,
    expected: Mapping[str, str],
) -> tuple[ComponentState, ...]:
    """One entry per instance: who answered, whom the registry knows, who should be there.

    ``expected`` is instance -> component, from the page of `up`.
    """
    found = {name: ComponentState(kind, name, "missing") for name, kind in expected.items()}
    for entry in fleet.processes if fleet else ():
        state = "lost" if entry.lost else "does not answer"
        found[entry.heartbeat.instance] = _component(entry.heartbeat, state)
    for reply in shown:
        beat = reply.heartbeat
        found[beat.instance] = _component(beat, beat.state, reply)
    return tuple(found[name] for name in sorted(found, key=lambda n: (found[n].component, n)))


def _component(
    beat: HeartbeatSent, state: str, reply: ShowComponentReply | None = None
) -> ComponentState:
    return ComponentState(
        component=beat.component,
        instance=beat.instance,
        state=state,
        pid=beat.pid,
        host=beat.host,
        since_ms=beat.since_ms,
        epoch=beat.process_epoch,
        role=beat.role,
        model=beat.model,
        address=beat.address,
        owns=beat.owns,
        running=beat.running,
        answers=reply is not None,
        counters=dict(sorted(reply.counters.items())) if reply else {},
        notes=reply.notes if reply else (),
    )


def as_text(snapshot: Snapshot) -> str:
    """The snapshot for people."""
    parts = [
        columns(
            ("COMPONENT", "ID", "ROLE", "STATE", "PID", "HOST", "SINCE", "WHAT"),
            (_component_row(c, snapshot.at_ms) for c in snapshot.components),
        )
    ]
    if snapshot.engines:
        parts.append(
            columns(("ENGINE", "ROLE", "LOAD", "AGE"), (_engine_row(e) for e in snapshot.engines))
        )
    if snapshot.registered:
        parts.append(
            columns(
                ("ENGINE ELSEWHERE", "ROLE", "KV CONNECTOR", "KNOWN BY"),
                ((r.instance, r.role, r.kv_address or "-", r.by) for r in snapshot.registered),
            )
        )
    parts.append(_bus_text(snapshot.bus))
    if problems := snapshot.problems():
        parts.append("\n".join(["PROBLEMS", *(f"  {problem}" for problem in problems)]))
    return "\n\n".join(parts)


def _component_row(c: ComponentState, at_ms: int) -> tuple[str, ...]:
    since = "" if c.since_ms is None else duration((at_ms - c.since_ms) / 1000)
    what = c.address or c.model or ", ".join(c.owns)
    return c.component, c.instance, c.role or "-", c.state, str(c.pid or "-"), c.host, since, what


def _engine_row(e: EngineEntry) -> tuple[str, ...]:
    age = f"{e.age_ms} ms{' STALE' if e.stale else ''}"
    if e.load is not None:
        load = (
            f"{e.load.running} running, {e.load.waiting} waiting,"
            f" KV {e.load.kv_pages_used}/{e.load.kv_pages_total} pages, {e.load.leases} leases"
        )
        return e.engine, e.load.role, load, age
    if e.state is not None:
        load = (
            f"{e.state.pending_tokens_total} tokens pending, {e.state.scheduling_mode},"
            f" {e.state.latency_pred_ms:g} ms, from {e.state.source_address}"
        )
        return e.engine, "(UDP)", load, age
    return e.engine, "-", "nothing known", age


def _bus_text(bus: BusState) -> str:
    version = f"nats-server {bus.server_version}, " if bus.server_version else ""
    connected = "connected" if bus.connected else f"not connected ({bus.error})"
    jetstream = "JetStream answers" if bus.jetstream else "JetStream does not answer"
    head = f"BUS  {bus.url}: {version}{connected}, {jetstream}"
    if not bus.streams:
        return head
    rows = ((s.name, str(s.messages), _bytes(s.bytes), str(s.last_seq)) for s in bus.streams)
    return f"{head}\n{columns(('STREAM', 'MESSAGES', 'SIZE', 'LAST SEQ'), rows)}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
