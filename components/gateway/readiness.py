"""Would a request succeed now, and if not, what is missing? Told from heartbeats."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from components.gateway.core import GatewayCore
from schemas.fleet import HeartbeatSent

_SERVING = frozenset({"ready", "degraded"})


@dataclass(frozen=True, slots=True)
class Readiness:
    """``models`` can be served; with none, ``missing`` says why, most basic first."""

    models: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return bool(self.models)


def readiness(  # noqa: PLR0911  (a ladder: each rung needs the one below)
    core: GatewayCore, cards: Iterable[str], *, connected: bool, draining: bool
) -> Readiness:
    """``cards`` names the models whose cards are here."""
    if draining:
        return Readiness((), ("this gateway is shutting down",))
    if not connected:
        return Readiness((), ("the connection to the bus",))
    if not any(s.state in _SERVING for s in core.schedulers.of("scheduler")):
        return Readiness((), ("a scheduler",))
    workers = list(core.workers.of("worker"))
    if not any(w.state in _SERVING for w in workers):
        return Readiness((), ("a worker",))
    owned = {s for r in core.routers.of("router") if r.state in _SERVING for s in r.owns}
    shards = sorted({w.shard for w in workers if w.shard and _can_serve(w.shard, workers)})
    if not shards:
        return Readiness((), ("workers that can serve together",))
    routed = [s for s in shards if s in owned]
    if not routed:
        return Readiness((), tuple(f"a router for shard {s}" for s in shards))
    served = {w.model for w in workers if w.model and w.shard in routed}
    models = tuple(sorted(served & set(cards)))
    return Readiness(models, () if models else tuple(f"the card of {m}" for m in sorted(served)))


def _can_serve(shard: str, workers: Iterable[HeartbeatSent]) -> bool:
    """An engine that does both phases, or one for each; else any engine, once none is starting.

    A single prefill or decode engine can do both, but while its other half starts it is not what
    was asked for.
    """
    states = {w.role: w.state for w in _of(shard, workers) if w.state in _SERVING}
    if "aggregated" in states or {"prefill", "decode"} <= states.keys():
        return True
    return bool(states) and not any(w.state == "starting" for w in _of(shard, workers))


def _of(shard: str, workers: Iterable[HeartbeatSent]) -> Iterator[HeartbeatSent]:
    return (w for w in workers if w.shard == shard)
