"""From a datagram to an event, or to a counted reason why not.

In this order, cheapest first, so that a flood costs little: size, the rate of its source, the rate
of all, signature and age of a signed one, JSON and fields, order per engine.

Times are the bridge's own: ``now_s`` monotonic for rates, ages and latches, ``wall_ms`` as the mark
of reception. A sender's timestamp is compared with the same engine's earlier ones only, and for
display with the bridge's clock; a signed sender is put in order by its numbers.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from components.bridge.datagram import BadDatagram, Datagram
from components.bridge.trust import Heard, NotBelieved, Trust
from components.bridge.windows import DUPLICATE_S, Windows
from components.domain.rates import Rates
from schemas.engine import EngineStateReceived, EngineStateSeen, ShowStates, ShowStatesReply

#: States that are kept of one engine.
HISTORY: Final = 100


@dataclass(slots=True)
class Known:
    """The last state taken from one engine, and those before it, oldest first.

    ``load`` is the last one that was no heartbeat.
    """

    last: Heard
    heard_s: float
    history: deque[EngineStateReceived]
    heard: int = 1
    load: Datagram | None = None
    load_s: float = -math.inf

    @property
    def clock_ahead_ms(self) -> int:
        """See ``EngineStateSeen``."""
        return max(state.timestamp_ms - state.received_ms for state in self.history)


def legacy_trust() -> Trust:
    """Whatever comes, as the seed's gateway."""
    return Trust("legacy", {}, Windows(4096, 30_000))


@dataclass(slots=True)
class BridgeCore:
    """Pure: bytes, address and time in, events out.

    ``totals`` counts: received = rate_limited + unbelieved (by reason) + invalid (by reason) +
    valid; of the valid ones, those that were reordered, duplicates or of ignored engines made no
    event.
    """

    datagram_bytes_max: int = 4096
    source_per_s: float = 1000.0
    source_burst: int = 2000
    sources_max: int = 4096
    total_per_s: float = 25_000.0
    total_burst: int = 25_000
    stale_after_s: float = 2.0
    purge_after_s: float = 300.0
    order_ttl_s: float = 10.0
    engines_max: int = 4096
    trust: Trust = field(default_factory=legacy_trust)
    totals: Counter[str] = field(default_factory=Counter, init=False)
    _engines: OrderedDict[str, Known] = field(default_factory=OrderedDict, init=False)
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
        self,
        data: bytes,
        host: str,
        port: int,
        now_s: float,
        wall_ms: int,
        *,
        broadcast: bool = False,
    ) -> EngineStateReceived | None:
        """The event for one datagram from ``host:port``, or None when it was refused."""
        totals = self.totals
        totals["received_total"] += 1
        totals["last_received_ms"] = wall_ms
        totals["broadcast_received_total" if broadcast else "unicast_received_total"] += 1
        if len(data) > self.datagram_bytes_max:
            self._refuse("too_long")
            return None
        if not self._rates.admits(host, now_s):
            totals["rate_limited_total"] += 1
            return None
        try:
            heard = self.trust.believe(data, host, now_s, wall_ms)
        except NotBelieved as error:
            self._not_believed(error.reason)
            return None
        except BadDatagram as error:
            self._refuse(error.reason)
            return None
        totals["valid_total"] += 1
        totals["unknown_fields_total"] += heard.datagram.unknown_fields
        known = self._news(heard, now_s)
        if known is None:
            return None
        event = self._event(known, heard, f"{_shown(host)}:{port}", now_s, wall_ms)
        known.history.append(event)
        return event

    def show(self, asked: ShowStates, now_s: float, wall_ms: int = 0) -> ShowStatesReply:
        """What is known of engines, and what was counted."""
        if asked.engine_id is not None:
            names = [asked.engine_id] if asked.engine_id in self._engines else []
        else:
            names = sorted(name for name in self._engines if name > asked.after)
        shown = names[: asked.limit]
        history = self._engines[shown[0]].history if asked.engine_id and shown else ()
        return ShowStatesReply(
            engines=tuple(self._seen(self._engines[name], now_s, wall_ms) for name in shown),
            history=tuple(history)[-asked.history :] if asked.history else (),
            totals=dict(self.totals),
            levels=dict(self.levels(now_s)),
            valid_rate=self.valid_rate(),
            more=len(names) > len(shown),
        )

    def _seen(self, known: Known, now_s: float, wall_ms: int) -> EngineStateSeen:
        age_s = max(0.0, now_s - known.heard_s)
        state, ahead_ms = known.history[-1], known.clock_ahead_ms
        # By its own clock, as far as that is known to differ from ours; exact up to its way.
        sent_age_ms = max(0, wall_ms - state.timestamp_ms + ahead_ms) if wall_ms else 0
        sender = known.last.sender
        return EngineStateSeen(
            state=state,
            age_ms=round(age_s * 1e3),
            stale=age_s > self.stale_after_s,
            kept=len(known.history),
            clock_ahead_ms=ahead_ms,
            sent_age_ms=sent_age_ms,
            stale_by_send=sent_age_ms > self.stale_after_s * 1e3,
            heard=known.heard if sender is None else self.trust.windows.heard(sender),
            lost=None if sender is None else self.trust.windows.lost(sender),
        )

    def on_tick(self, now_s: float) -> None:
        """Forget engines that were silent for long, and sources whose bucket is full again."""
        while self._engines:
            engine_id, known = next(iter(self._engines.items()))
            if now_s - known.heard_s < self.purge_after_s:
                break
            del self._engines[engine_id]
            self.totals["purged_total"] += 1
        self._rates.on_tick(now_s)

    def levels(self, now_s: float) -> Mapping[str, int]:
        """What is known now: engines heard of, and how many of them within ``stale_after_s``."""
        oldest_s = now_s - self.stale_after_s
        signed = [k.last.sender for k in self._engines.values() if k.last.sender is not None]
        return {
            "active_engines": sum(e.heard_s >= oldest_s for e in self._engines.values()),
            "total_engines": len(self._engines),
            "signed_engines": len(signed),
            "lost_datagrams": sum(map(self.trust.windows.lost, signed)),
            "sources": len(self._rates),
        }

    def valid_rate(self) -> str:
        """The seed's figure: valid among received, ``"0.00%"`` when nothing was received."""
        received = self.totals["received_total"]
        return f"{100 * self.totals['valid_total'] / received if received else 0:.2f}%"

    def _refuse(self, reason: str) -> None:
        self.totals["invalid_total"] += 1
        self.totals[f"invalid_{reason}_total"] += 1

    def _not_believed(self, reason: str) -> None:
        self.totals["unbelieved_total"] += 1
        self.totals[f"unbelieved_{reason}_total"] += 1

    # News.

    def _news(self, heard: Heard, now_s: float) -> Known | None:
        """The engine's entry with ``heard`` as its last state; None when that is no news."""
        if heard.copy:
            self.totals["duplicates_total"] += 1
            return None
        engine_id = heard.datagram.engine_id
        known = self._engines.get(engine_id)
        if known is None:
            if not self._has_room(now_s):
                self.totals["engines_ignored_total"] += 1
                return None
            known = self._engines[engine_id] = Known(heard, now_s, deque(maxlen=HISTORY))
            return known
        if (why := self._why_not(heard, known, now_s)) is not None:
            self.totals[why] += 1
            return None
        known.last, known.heard_s = heard, now_s
        known.heard += 1
        self._engines.move_to_end(engine_id)
        return known

    def _why_not(self, heard: Heard, known: Known, now_s: float) -> str | None:
        """The counter of what keeps it from being news, or None."""
        last, since_s = known.last, now_s - known.heard_s
        if heard.signed or since_s > self.order_ttl_s:
            # The numbers of a signed one have put it in order already.
            return "reordered_total" if heard.late else None
        if last.signed:
            # Who signs is not spoken for by somebody who does not.
            return "outranked_total"
        if heard.datagram.timestamp_ms < last.datagram.timestamp_ms:
            return "reordered_total"
        repeated = heard.datagram == last.datagram and since_s <= DUPLICATE_S
        return "duplicates_total" if repeated else None

    def _has_room(self, now_s: float) -> bool:
        """Is there a place for a new engine, be it that of one which is silent for long?"""
        if len(self._engines) < self.engines_max:
            return True
        engine_id, known = next(iter(self._engines.items()))
        if now_s - known.heard_s <= self.order_ttl_s:
            return False
        del self._engines[engine_id]
        return True

    def _event(
        self, known: Known, heard: Heard, source: str, now_s: float, wall_ms: int
    ) -> EngineStateReceived:
        """A heartbeat says that the engine lives, and never that it does less than it just said."""
        datagram = figures = heard.datagram
        heartbeat = datagram.is_heartbeat
        if not heartbeat:
            known.load, known.load_s = datagram, now_s
        else:
            self.totals["heartbeats_total"] += 1
            if known.load is not None and now_s - known.load_s <= self.stale_after_s:
                figures = known.load
                self.totals["heartbeats_over_loads_total"] += 1
        return EngineStateReceived.trusted(
            {
                "engine_id": datagram.engine_id,
                "timestamp_ms": datagram.timestamp_ms,
                "latency_pred_ms": figures.latency_pred_ms,
                "scheduling_mode": figures.scheduling_mode,
                "pending_tokens_total": figures.pending_tokens_total,
                "kv_cache_free_blocks": figures.kv_cache_free_blocks,
                "kv_cache_total_blocks": figures.kv_cache_total_blocks,
                "engine_capacity": figures.engine_capacity,
                "received_ms": wall_ms,
                "source_address": source,
                "trust": "signed" if heard.signed else "low",
                "sender_epoch": heard.epoch,
                "sender_seq": heard.seq,
                "heartbeat": heartbeat,
            }
        )


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
