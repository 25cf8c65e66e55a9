"""Whether the gateways that wait for our tokens are still there. Pure.

A gateway that is silent may come back, or its clients may come back to another one; so its
streams go on for a grace, and only then are they nobody's. When we hear nobody at all, it is we
who are cut off, and silence proves nothing.
"""

from dataclasses import dataclass, field
from typing import Final

from schemas.fleet import HeartbeatSent

#: Gateways without a stream are forgotten after this silence.
FORGET_AFTER_S: Final = 60.0


@dataclass(slots=True)
class _Heard:
    epoch: int | None
    at_s: float
    #: When former lives of it ended; the newest one is all that matters.
    restarted_s: float | None = None


@dataclass(slots=True)
class Gateways:
    """When each gateway was last heard. A stream remembers in which life of it it began."""

    _heard: dict[str, _Heard] = field(default_factory=dict)

    def on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> None:
        """A gateway lives; a goodbye counts as silence from now on."""
        heard = self._heard.get(heartbeat.instance)
        if heard is None:
            self._heard[heartbeat.instance] = _Heard(heartbeat.process_epoch, now_s)
        elif heard.epoch is None or heartbeat.process_epoch == heard.epoch:
            heard.epoch = heartbeat.process_epoch
            if heartbeat.state != "stopped":
                heard.at_s = now_s
        elif heartbeat.process_epoch > heard.epoch:
            heard.epoch, heard.restarted_s = heartbeat.process_epoch, heard.at_s
            heard.at_s = now_s

    def life_of(self, gateway: str, now_s: float) -> int | None:
        """The life that a new stream belongs to; None when it was not heard yet."""
        return self._heard.setdefault(gateway, _Heard(None, now_s)).epoch

    def silent_s(self, gateway: str, life: int | None, now_s: float) -> float:
        """For how long this life of the gateway has said nothing."""
        heard = self._heard[gateway]
        if life is None or heard.epoch in (None, life):
            return now_s - heard.at_s
        return now_s - (heard.at_s if heard.restarted_s is None else heard.restarted_s)

    def forgive(self, now_s: float) -> None:
        """It was we who could not hear."""
        for heard in self._heard.values():
            heard.at_s = now_s
            if heard.restarted_s is not None:
                heard.restarted_s = now_s

    def forget(self, used: set[str], now_s: float) -> None:
        """Drop those that are silent and have no stream here."""
        for gateway, heard in list(self._heard.items()):
            if gateway not in used and now_s - heard.at_s > FORGET_AFTER_S:
                del self._heard[gateway]
