"""Who is there: heartbeats become joins and leaves, reports become entries with an age.

A fact is as old as the moment it was heard here; wall clocks of others are shown and never compared
with ours. An engine is known by its own load report, by the state that a bridge took in, or by
both. Engines outside Switchyard are what bridges say they are (``registered.py``). Nothing is kept
for ever: who falls silent is forgotten after ``purge_after_s``, and every table is bounded.

A registry that starts anew hears everybody for the first time and says so again: readers of
FLEET take joins of one (instance, process_epoch) for one.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from components.domain.liveness import Change, PeerJoined, PeerLost, PeerTable
from components.domain.outcomes import Count
from components.registry.registered import RegisteredTable
from schemas.engine import EngineLoadReported, EngineStateReceived, EngineStatesReceived
from schemas.fleet import (
    EngineEntry,
    FleetEntry,
    FleetExpired,
    FleetJoined,
    FleetLeft,
    FleetRegistered,
    HeartbeatSent,
    ShowFleetReply,
)

Outcome = FleetJoined | FleetLeft | Count


@dataclass(slots=True)
class Engine:
    """The latest that was heard of one engine, and when."""

    load: EngineLoadReported | None = None
    load_s: float = -math.inf
    state: EngineStateReceived | None = None
    state_s: float = -math.inf

    @property
    def heard_s(self) -> float:
        return max(self.load_s, self.state_s)


@dataclass(frozen=True, slots=True)
class Gone:
    """A process that is not there any more."""

    heartbeat: HeartbeatSent
    heard_s: float
    lost: bool


@dataclass(slots=True)
class RegistryCore:
    """Pure: messages and time in, what to tell the fleet out."""

    silent_after_s: float = 2.0
    stale_after_s: float = 2.0
    purge_after_s: float = 300.0
    processes_max: int = 4096
    engines_max: int = 4096
    registered_max: int = 4096
    _peers: PeerTable = field(init=False)
    _heard_s: dict[str, float] = field(default_factory=dict, init=False)
    _gone: dict[str, Gone] = field(default_factory=dict, init=False)
    #: In the order in which they were last heard.
    _engines: OrderedDict[str, Engine] = field(default_factory=OrderedDict, init=False)
    _registered: RegisteredTable = field(init=False)

    def __post_init__(self) -> None:
        # A stuck engine is still there: whether to send it work is the router's business.
        self._peers = PeerTable(
            silent_after_s=self.silent_after_s,
            stuck_after_s=math.inf,
            peers_max=self.processes_max,
        )
        self._registered = RegisteredTable(self.registered_max, self.purge_after_s)

    # What comes in.

    def on_message(
        self, message: HeartbeatSent | EngineLoadReported | EngineStatesReceived, now_s: float
    ) -> list[Outcome]:
        """Take one message, heard at ``now_s``."""
        match message:
            case HeartbeatSent():
                return self._on_heartbeat(message, now_s)
            case EngineLoadReported():
                return self._on_load(message, now_s)
            case EngineStatesReceived():
                return [o for state in message.states for o in self._on_state(state, now_s)]

    def on_registration(
        self, message: FleetRegistered | FleetExpired, bridge: str, bridge_epoch: int
    ) -> list[Outcome]:
        """Take what this life of ``bridge`` says of an engine outside Switchyard."""
        match message:
            case FleetRegistered():
                kept = self._registered.on_registered(message, bridge, bridge_epoch)
                return [] if kept else [Count("registered_ignored_total")]
            case FleetExpired():
                self._registered.on_expired(message)
                return []

    def on_tick(self, now_s: float) -> list[Outcome]:
        """Notice silence, forget the long silent."""
        changes = self._peers.on_tick(now_s)
        outcomes = self._outcomes(changes, now_s)
        oldest_s = now_s - self.purge_after_s
        self._gone = {k: g for k, g in self._gone.items() if g.heard_s > oldest_s}
        while self._engines and next(iter(self._engines.values())).heard_s <= oldest_s:
            self._engines.popitem(last=False)
        self._registered.on_tick(self._peers.lives, now_s)
        return outcomes

    def on_resume(self, now_s: float) -> None:
        """The bus was away and is back: until now it was we who could not hear."""
        self._peers.forgive(now_s)

    # What can be asked.

    def lives(self, instance: str, process_epoch: int) -> bool:
        """Is this very life heard now?"""
        return self._peers.lives(instance, process_epoch)

    def show(self, now_s: float) -> ShowFleetReply:
        """Every process and engine heard of within ``purge_after_s``, in order of name."""
        living = [
            FleetEntry(heartbeat=heartbeat, silent_ms=_ms(now_s - heard_s), lost=False)
            for instance, heard_s in self._heard_s.items()
            if (heartbeat := self._peers.get(instance)) is not None
        ]
        gone = [
            FleetEntry(heartbeat=g.heartbeat, silent_ms=_ms(now_s - g.heard_s), lost=g.lost)
            for g in self._gone.values()
        ]
        return ShowFleetReply(
            processes=tuple(sorted(living + gone, key=lambda e: e.heartbeat.instance)),
            engines=tuple(self._entry(name, now_s) for name in sorted(self._engines)),
            registered=self._registered.all(),
        )

    # Processes.

    def _on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> list[Outcome]:
        ignored = self._peers.ignored
        changes = self._peers.on_heartbeat(heartbeat, now_s)
        if self._peers.ignored > ignored:
            return [Count("processes_ignored_total")]
        outcomes = self._outcomes(changes, now_s)
        if self._peers.lives(heartbeat.instance, heartbeat.process_epoch):
            self._heard_s[heartbeat.instance] = now_s
            if heartbeat.component == "bridge" and heartbeat.state == "ready":
                self._registered.on_bridge_ready(heartbeat.instance, heartbeat.process_epoch)
        return outcomes

    def _outcomes(self, changes: list[Change], now_s: float) -> list[Outcome]:
        return [
            self._joined(c) if isinstance(c, PeerJoined) else self._left(c, now_s) for c in changes
        ]

    def _joined(self, change: PeerJoined) -> FleetJoined:
        heartbeat = change.heartbeat
        self._gone.pop(heartbeat.instance, None)
        return FleetJoined(
            component=heartbeat.component,
            instance=heartbeat.instance,
            process_epoch=heartbeat.process_epoch,
            host=heartbeat.host,
            pid=heartbeat.pid,
            role=heartbeat.role,
            model=heartbeat.model,
        )

    def _left(self, change: PeerLost, now_s: float) -> FleetLeft:
        heartbeat = change.heartbeat
        lost = change.why != "goodbye"
        heard_s = self._heard_s.pop(heartbeat.instance, now_s)
        if not lost:
            heartbeat = heartbeat.model_copy(update={"state": "stopped"})
        if len(self._gone) >= self.processes_max:
            del self._gone[next(iter(self._gone))]
        self._gone[heartbeat.instance] = Gone(heartbeat, heard_s, lost)
        return FleetLeft(
            component=heartbeat.component,
            instance=heartbeat.instance,
            process_epoch=heartbeat.process_epoch,
            lost=lost,
            silent_ms=_ms(now_s - heard_s),
        )

    # Engines.

    def _on_load(self, load: EngineLoadReported, now_s: float) -> list[Outcome]:
        engine = self._engine(load.engine, now_s)
        if engine is None:
            return [Count("engines_ignored_total")]
        if engine.load is not None and load.engine_epoch < engine.load.engine_epoch:
            return [Count("loads_of_old_lives_total")]
        engine.load, engine.load_s = load, now_s
        self._engines.move_to_end(load.engine)
        return []

    def _on_state(self, state: EngineStateReceived, now_s: float) -> list[Outcome]:
        engine = self._engine(state.engine_id, now_s)
        if engine is None:
            return [Count("engines_ignored_total")]
        fresh = now_s - engine.state_s <= self.stale_after_s
        if fresh and engine.state is not None and state.timestamp_ms < engine.state.timestamp_ms:
            # Two bridges may hear one engine. A stale state yields: its sender's clock may have
            # been set back.
            return [Count("states_reordered_total")]
        engine.state, engine.state_s = state, now_s
        self._engines.move_to_end(state.engine_id)
        return []

    def _engine(self, name: str, now_s: float) -> Engine | None:
        """The engine's entry; when the table is full a new one needs the place of a stale one."""
        engine = self._engines.get(name)
        if engine is None:
            if len(self._engines) >= self.engines_max:
                stalest = next(iter(self._engines.values()))
                if now_s - stalest.heard_s <= self.stale_after_s:
                    return None
                self._engines.popitem(last=False)
            engine = self._engines[name] = Engine()
        return engine

    def _entry(self, name: str, now_s: float) -> EngineEntry:
        engine = self._engines[name]
        age_s = now_s - engine.heard_s
        return EngineEntry(
            engine=name,
            age_ms=_ms(age_s),
            stale=age_s > self.stale_after_s,
            load=engine.load,
            state=engine.state,
        )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
