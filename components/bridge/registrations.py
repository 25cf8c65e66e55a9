"""Which engines outside Switchyard exist: those that ping, and those that stand in the settings.

Pure: pings and time in, ``FleetRegistered`` and ``FleetExpired`` out. An engine is said when it is
first heard, when what it says changes, and again to a registry that starts anew. Every entry
expires by itself, ``ttl_s`` after its last ping, whatever the others do.

Settings outrank pings: a static engine never expires and keeps its role. What it cannot know from
settings, where its KV connector listens, a ping adds.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from components.bridge import ping
from components.bridge.ping import BadPing, Ping
from components.domain.rates import Rates
from schemas.codes import Role
from schemas.fleet import FleetExpired, FleetRegistered, HeartbeatSent

Outcome = FleetRegistered | FleetExpired

#: Between two ticks further apart than this it was we who did not listen.
STALL_S: Final = 2.0
REGISTRIES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Known:
    """One engine, as it was last said."""

    role: Role
    kv_address: str
    by: Literal["ping", "static"]
    heard_s: float


@dataclass(slots=True)
class Registrations:
    """At most ``engines_max`` engines that ping; new ones beyond are ignored, counted.

    ``totals`` counts: pings = rate limited + invalid (by reason) + valid; of the valid ones, those
    of ignored engines and those that contradict the settings changed nothing.
    """

    ttl_s: float = 10.0
    engines_max: int = 4096
    source_per_s: float = 1.0
    source_burst: int = 5
    sources_max: int = 4096
    total_per_s: float = 2000.0
    total_burst: int = 4000
    totals: Counter[str] = field(default_factory=Counter, init=False)
    #: By HTTP address; those that ping in the order in which they were last heard.
    _engines: OrderedDict[str, Known] = field(default_factory=OrderedDict, init=False)
    _static: dict[str, Known] = field(default_factory=dict, init=False)
    _registries: OrderedDict[str, int] = field(default_factory=OrderedDict, init=False)
    _rates: Rates = field(init=False)
    _ticked_s: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._rates = Rates(
            self.source_per_s,
            self.source_burst,
            self.sources_max,
            self.total_per_s,
            self.total_burst,
        )

    def set_static(self, engines: Iterable[tuple[Role, str]], now_s: float) -> list[Outcome]:
        """Take the engines that the settings name: ``(role, address)``, addresses normal."""
        self._static = {address: Known(role, "", "static", now_s) for role, address in engines}
        return self.say_all()

    def on_ping(self, sender: bytes, data: bytes, now_s: float) -> list[Outcome]:
        """Take one ping; ``sender`` is the identity of the socket that it came from."""
        self.totals["pings_total"] += 1
        if not self._rates.admits(sender, now_s):
            self.totals["pings_rate_limited_total"] += 1
            return []
        try:
            heard = ping.read(data)
        except BadPing as error:
            self.refuse(error.reason)
            return []
        self.totals["pings_valid_total"] += 1
        if heard.http_address in self._static:
            return self._on_static_ping(heard, now_s)
        return self._on_valid_ping(heard, now_s)

    def refuse(self, reason: str) -> None:
        """Count a ping that was refused."""
        self.totals["pings_invalid_total"] += 1
        self.totals[f"pings_invalid_{reason}_total"] += 1

    def on_tick(self, now_s: float) -> list[Outcome]:
        """Expire whoever was not heard for ``ttl_s``; call at least once a second."""
        last_s, self._ticked_s = self._ticked_s, now_s
        if last_s is not None and now_s - last_s > STALL_S:
            # Pings of that time still wait in the socket: nobody is judged before they are read.
            self._forgive(now_s - last_s, now_s)
        self._rates.on_tick(now_s)
        expired: list[Outcome] = []
        while self._engines:
            address, known = next(iter(self._engines.items()))
            silent_s = now_s - known.heard_s
            if silent_s < self.ttl_s:
                break
            del self._engines[address]
            self.totals["registrations_expired_total"] += 1
            expired.append(
                FleetExpired(instance=address, role=known.role, silent_ms=round(silent_s * 1000))
            )
        return expired

    def on_registry(self, heartbeat: HeartbeatSent) -> list[Outcome]:
        """A registry was heard: to a new life of it everything is said, once it listens."""
        name, epoch = heartbeat.instance, heartbeat.process_epoch
        if heartbeat.state == "starting" or epoch <= self._registries.get(name, 0):
            return []
        if name not in self._registries and len(self._registries) >= REGISTRIES_MAX:
            self._registries.popitem(last=False)
        self._registries[name] = epoch
        return self.say_all()

    def say_all(self) -> list[Outcome]:
        """Every engine that is known now."""
        known = {**self._static, **self._engines}
        return [self._registered(address, one) for address, one in known.items()]

    def __len__(self) -> int:
        return len(self._static) + len(self._engines)

    def _on_static_ping(self, heard: Ping, now_s: float) -> list[Outcome]:
        known = self._static[heard.http_address]
        if heard.role != known.role:
            self.totals["pings_contradicting_settings_total"] += 1
            return []
        if heard.kv_address == known.kv_address:
            return []
        now_known = Known(known.role, heard.kv_address, "static", now_s)
        self._static[heard.http_address] = now_known
        return [self._registered(heard.http_address, now_known)]

    def _on_valid_ping(self, heard: Ping, now_s: float) -> list[Outcome]:
        address, known = heard.http_address, self._engines.get(heard.http_address)
        if known is None and len(self._engines) >= self.engines_max:
            self.totals["registrations_ignored_total"] += 1
            return []
        now_known = Known(heard.role, heard.kv_address, "ping", now_s)
        self._engines[address] = now_known
        # The front is always the one that was silent longest, so expiry looks at nobody else.
        self._engines.move_to_end(address)
        if known is not None and replace(known, heard_s=now_s) == now_known:
            return []
        return [self._registered(address, now_known)]

    def _registered(self, address: str, known: Known) -> FleetRegistered:
        return FleetRegistered(
            instance=address,
            role=known.role,
            http_address=address,
            kv_address=known.kv_address,
            by=known.by,
            ttl_ms=round(self.ttl_s * 1000) if known.by == "ping" else 0,
        )

    def _forgive(self, pause_s: float, now_s: float) -> None:
        for address, known in self._engines.items():
            heard_s = min(now_s, known.heard_s + pause_s)
            self._engines[address] = replace(known, heard_s=heard_s)
