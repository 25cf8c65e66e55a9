"""Engines outside Switchyard, as bridges tell of them. Pure.

A bridge says an engine once and says when it expires. So what it said holds for as long as that
life of the bridge lasts, and a little longer: a new life has heard every engine that pings within
the ``ttl_ms`` of the old one, and has said what stands in its settings before it is ready.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.fleet import FleetExpired, FleetRegistered


@dataclass(slots=True)
class Registered:
    """What was said, by which life of which bridge, and since when that life is over."""

    engine: FleetRegistered
    bridge: str
    bridge_epoch: int
    orphan_s: float = math.inf


@dataclass(slots=True)
class RegisteredTable:
    """By instance, at most ``engines_max``; a new one beyond is refused.

    Static engines of a bridge that does not come back are kept for ``purge_after_s``.
    """

    engines_max: int
    purge_after_s: float
    _engines: dict[str, Registered] = field(default_factory=dict)

    def on_registered(self, engine: FleetRegistered, bridge: str, bridge_epoch: int) -> bool:
        """Take an engine; False when there is no place for it. The last one to speak is right."""
        if engine.instance not in self._engines and len(self._engines) >= self.engines_max:
            return False
        self._engines[engine.instance] = Registered(engine, bridge, bridge_epoch)
        return True

    def on_expired(self, expired: FleetExpired) -> None:
        """Forget an engine, unless it was said to have another role since."""
        known = self._engines.get(expired.instance)
        if known is not None and known.engine.role == expired.role:
            del self._engines[expired.instance]

    def on_bridge_ready(self, bridge: str, epoch: int) -> None:
        """What an earlier life had in its settings and this one did not say is not there now."""
        self._engines = {
            name: known
            for name, known in self._engines.items()
            if not (
                known.bridge == bridge
                and known.bridge_epoch < epoch
                and known.engine.by == "static"
            )
        }

    def on_tick(self, lives: Callable[[str, int], bool], now_s: float) -> None:
        """Forget what was said by bridges that are gone for long; ``lives(bridge, epoch)``."""
        for name, known in list(self._engines.items()):
            if lives(known.bridge, known.bridge_epoch):
                known.orphan_s = math.inf
            elif known.orphan_s == math.inf:
                known.orphan_s = now_s
            elif now_s - known.orphan_s >= (known.engine.ttl_ms / 1000 or self.purge_after_s):
                del self._engines[name]

    def all(self) -> tuple[FleetRegistered, ...]:
        """Every engine, in order of instance."""
        return tuple(self._engines[name].engine for name in sorted(self._engines))
