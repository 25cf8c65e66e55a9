"""Whom this worker hears: other workers, gateways, and itself. Pure.

Our own heartbeats come back to us as well. When nothing at all is heard, it is we who are cut
off, and the silence of others proves nothing; when hearing comes back, everybody gets a fresh
start.
"""

from components.domain.liveness import PeerLost, PeerTable
from components.worker.gateways import Gateways
from schemas.fleet import HeartbeatSent

#: (instance, epoch)
Life = tuple[str, int]


class Surroundings:
    """Peers are the other workers; lost ones are returned once."""

    def __init__(self, me: str, *, peer_silent_after_s: float, deaf_after_s: float) -> None:
        self._me = me
        self._deaf_after_s = deaf_after_s
        self._heard_s: float | None = None
        self.peers = PeerTable(silent_after_s=peer_silent_after_s)
        self.gateways = Gateways()

    def on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> list[Life]:
        """Take a heartbeat; the lives that it ends."""
        if self.is_deaf(now_s):
            self.forgive(now_s)
        self._heard_s = now_s
        if heartbeat.component == "gateway":
            self.gateways.on_heartbeat(heartbeat, now_s)
        if heartbeat.component != "worker" or heartbeat.instance == self._me:
            return []
        changes = self.peers.on_heartbeat(heartbeat, now_s)
        return [_life(c.heartbeat) for c in changes if isinstance(c, PeerLost)]

    def on_tick(self, now_s: float) -> list[Life]:
        """The lives that have been silent, or stuck, for too long."""
        if self.is_deaf(now_s):
            return []
        changes = self.peers.on_tick(now_s)
        return [_life(c.heartbeat) for c in changes if isinstance(c, PeerLost)]

    def is_deaf(self, now_s: float) -> bool:
        """When everybody is silent at once, it is we who are cut off."""
        return self._heard_s is None or now_s - self._heard_s > self._deaf_after_s

    def forgive(self, now_s: float) -> None:
        """Take everybody for heard just now."""
        self._heard_s = now_s
        self.peers.forgive(now_s)
        self.gateways.forgive(now_s)


def _life(heartbeat: HeartbeatSent) -> Life:
    return heartbeat.instance, heartbeat.process_epoch
