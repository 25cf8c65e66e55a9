"""From a datagram to an event, or to a counted reason why not.

In this order, cheapest first, so that a flood costs little: size, the rate of its source, the rate
of all, JSON and fields, order of timestamps per engine.

Times are the bridge's own: ``now_s`` monotonic for rates, ages and latches, ``wall_ms`` as the mark
of reception. A sender's timestamp is compared with the same engine's earlier ones only.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from components.bridge.datagram import BadDatagram, Datagram, read
from components.bridge.rates import Rates
from schemas.engine import EngineStateReceived, EngineStateSeen, ShowStates, ShowStatesReply

#: States that are kept of one engine.
HISTORY: Final = 100
#: A broadcasting sender reaches one host by up to three ways, at once.
DUPLICATE_S: Final = 0.5


@dataclass(slots=True)
class Heard:
    """The last state taken from one engine, and those before it, oldest first."""

    datagram: Datagram
    heard_s: float
    history: deque[EngineStateReceived]

    @property
    def clock_ahead_ms(self) -> int:
        """See ``EngineStateSeen``."""
        return max(state.timestamp_ms - state.received_ms for state in self.history)


@dataclass(slots=True)
class BridgeCore:
    """Pure: bytes, address and time in, events out.

    ``totals`` counts: received = rate_limited + invalid (by reason) + valid; of the valid ones,
    those that were reordered, duplicates or of ignored engines made no event.
    """

    datagram_bytes_max: int = 4096
    source_per_s: float = 1000.0
    source_burst: int = 2000
    sources_max: int = 4096
    total_per_s: float = 10_000.0
    total_burst: int = 20_000
    stale_after_s: float = 2.0
    purge_after_s: float = 300.0
    order_ttl_s: float = 10.0
    engines_max: int = 4096
    totals: Counter[str] = field(default_factory=Counter, init=False)
    _engines: OrderedDict[str, Heard] = field(default_factory=OrderedDict, init=False)
    _rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        self._rates = Rates(
            self.source_per_s,
            self.source_burst,
            self.sources_max,
            self.total_per_s,
            self.total_burst,
        )

    def on_datagram(
        self, data: bytes, host: str, port: int, now_s: float, wall_ms: int
    ) -> EngineStateReceived | None:
        """The event for one datagram from ``host:port``, or None when it was refused."""
        self.totals["received_total"] += 1
        self.totals["last_received_ms"] = wall_ms
        if len(data) > self.datagram_bytes_max:
            self._refuse("too_long")
            return None
        if not self._rates.admits(host, now_s):
            self.totals["rate_limited_total"] += 1
            return None
        try:
            datagram = read(data)
        except BadDatagram as error:
            self._refuse(error.reason)
            return None
        self.totals["valid_total"] += 1
        self.totals["unknown_fields_total"] += datagram.unknown_fields
        if not self._is_news(datagram, now_s):
            return None
        source = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        event = _event(datagram, source, wall_ms)
        self._engines[datagram.engine_id].history.append(event)
        return event

    def show(self, asked: ShowStates, now_s: float) -> ShowStatesReply:
        """What is known of engines, and what was counted."""
        if asked.engine_id is not None:
            names = [asked.engine_id] if asked.engine_id in self._engines else []
        else:
            names = sorted(name for name in self._engines if name > asked.after)
        shown = names[: asked.limit]
        history = self._engines[shown[0]].history if asked.engine_id and shown else ()
        return ShowStatesReply(
            engines=tuple(self._seen(self._engines[name], now_s) for name in shown),
            history=tuple(history)[-asked.history :] if asked.history else (),
            totals=dict(self.totals),
            levels=dict(self.levels(now_s)),
            valid_rate=self.valid_rate(),
            more=len(names) > len(shown),
        )

    def _seen(self, heard: Heard, now_s: float) -> EngineStateSeen:
        age_s = max(0.0, now_s - heard.heard_s)
        return EngineStateSeen(
            state=heard.history[-1],
            age_ms=round(age_s * 1e3),
            stale=age_s > self.stale_after_s,
            kept=len(heard.history),
            clock_ahead_ms=heard.clock_ahead_ms,
        )

    def on_tick(self, now_s: float) -> None:
        """Forget engines that were silent for long, and sources whose bucket is full again."""
        while self._engines:
            engine_id, heard = next(iter(self._engines.items()))
            if now_s - heard.heard_s < self.purge_after_s:
                break
            del self._engines[engine_id]
        self._rates.on_tick(now_s)

    def levels(self, now_s: float) -> Mapping[str, int]:
        """What is known now: engines heard of, and how many of them within ``stale_after_s``."""
        oldest_s = now_s - self.stale_after_s
        return {
            "active_engines": sum(e.heard_s >= oldest_s for e in self._engines.values()),
            "total_engines": len(self._engines),
            "sources": len(self._rates),
        }

    def valid_rate(self) -> str:
        """The seed's figure: valid among received, ``"0.00%"`` when nothing was received."""
        received = self.totals["received_total"]
        return f"{100 * self.totals['valid_total'] / received if received else 0:.2f}%"

    def _refuse(self, reason: str) -> None:
        self.totals["invalid_total"] += 1
        self.totals[f"invalid_{reason}_total"] += 1

    def _is_news(self, datagram: Datagram, now_s: float) -> bool:
        last = self._engines.get(datagram.engine_id)
        if last is None:
            if not self._has_room(now_s):
                self.totals["engines_ignored_total"] += 1
                return False
        elif now_s - last.heard_s <= self.order_ttl_s:
            if datagram.timestamp_ms < last.datagram.timestamp_ms:
                self.totals["reordered_total"] += 1
                return False
            if datagram == last.datagram and now_s - last.heard_s <= DUPLICATE_S:
                self.totals["duplicates_total"] += 1
                return False
        if last is None:
            self._engines[datagram.engine_id] = Heard(datagram, now_s, deque(maxlen=HISTORY))
        else:
            last.datagram, last.heard_s = datagram, now_s
            self._engines.move_to_end(datagram.engine_id)
        return True

    def _has_room(self, now_s: float) -> bool:
        """Is there a place for a new engine, be it that of one which is silent for long?"""
        if len(self._engines) < self.engines_max:
            return True
        engine_id, heard = next(iter(self._engines.items()))
        if now_s - heard.heard_s <= self.order_ttl_s:
            return False
        del self._engines[engine_id]
        return True


def _event(datagram: Datagram, source_address: str, wall_ms: int) -> EngineStateReceived:
    return EngineStateReceived(
        engine_id=datagram.engine_id,
        timestamp_ms=datagram.timestamp_ms,
        latency_pred_ms=datagram.latency_pred_ms,
        scheduling_mode=datagram.scheduling_mode,
        pending_tokens_total=datagram.pending_tokens_total,
        kv_cache_free_blocks=datagram.kv_cache_free_blocks,
        kv_cache_total_blocks=datagram.kv_cache_total_blocks,
        engine_capacity=datagram.engine_capacity,
        received_ms=wall_ms,
        source_address=source_address,
    )
