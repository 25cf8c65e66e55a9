"""Who lives, judged by heartbeats against the receiver's own monotonic clock.

A peer is *lost* when it was silent for ``silent_after_s``, said goodbye, came back under a new
epoch (the old life is lost, a new one joins), or is stuck: it has work but its engine made no step
for ``stuck_after_s``. Wall clocks of other hosts are never compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from schemas.fleet import HeartbeatSent

Why = Literal["silent", "goodbye", "restarted", "stuck"]


@dataclass(slots=True)
class Peer:
    """One life of one process: the last heartbeat, and when it and the last progress were seen."""

    heartbeat: HeartbeatSent
    heard_s: float
    progress_s: float


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A process is heard for the first time in this life."""

    heartbeat: HeartbeatSent


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A life ended, or must be taken for ended."""

    heartbeat: HeartbeatSent
    why: Why


Change = PeerJoined | PeerLost


@dataclass(slots=True)
class PeerTable:
    """All peers of interest, at most ``peers_max``; what comes beyond that is ignored, counted."""

    silent_after_s: float = 2.0
    stuck_after_s: float = 10.0
    peers_max: int = 4096
    ignored: int = 0
    _peers: dict[str, Peer] = field(default_factory=dict)

    def on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> list[Change]:
        """Take a heartbeat; returns what it changes."""
        known = self._peers.get(heartbeat.instance)
        if heartbeat.state == "stopped":
            return self._goodbye(known, heartbeat)
        if known is None:
            if len(self._peers) >= self.peers_max:
                self.ignored += 1
                return []
            self._peers[heartbeat.instance] = Peer(heartbeat, now_s, now_s)
            return [PeerJoined(heartbeat)]
        if heartbeat.process_epoch < known.heartbeat.process_epoch:
            return []  # the old life speaking through a late message
        if heartbeat.process_epoch > known.heartbeat.process_epoch:
            self._peers[heartbeat.instance] = Peer(heartbeat, now_s, now_s)
            return [PeerLost(known.heartbeat, "restarted"), PeerJoined(heartbeat)]
        if heartbeat.watermark != known.heartbeat.watermark or heartbeat.running == 0:
            known.progress_s = now_s
        known.heartbeat = heartbeat
        known.heard_s = now_s
        return []

    def on_tick(self, now_s: float) -> list[Change]:
        """Drop whoever is silent or stuck at ``now_s``."""
        lost: list[Change] = []
        for peer in list(self._peers.values()):
            why: Why | None = None
            if now_s - peer.heard_s > self.silent_after_s:
                why = "silent"
            elif now_s - peer.progress_s > self.stuck_after_s:
                why = "stuck"
            if why is not None:
                del self._peers[peer.heartbeat.instance]
                lost.append(PeerLost(peer.heartbeat, why))
        return lost

    def forgive(self, now_s: float) -> None:
        """Take everybody for heard just now: it was we who could not hear."""
        for peer in self._peers.values():
            peer.heard_s = peer.progress_s = now_s

    def get(self, instance: str) -> HeartbeatSent | None:
        """The last heartbeat of a living peer."""
        peer = self._peers.get(instance)
        return peer.heartbeat if peer else None

    def lives(self, instance: str, process_epoch: int) -> bool:
        """Is this very life of the instance still on?"""
        peer = self._peers.get(instance)
        return peer is not None and peer.heartbeat.process_epoch == process_epoch

    def of(self, component: str) -> Iterator[HeartbeatSent]:
        """Living peers of a component, in order of instance."""
        for instance in sorted(self._peers):
            heartbeat = self._peers[instance].heartbeat
            if heartbeat.component == component:
                yield heartbeat

    def _goodbye(self, known: Peer | None, heartbeat: HeartbeatSent) -> list[Change]:
        if known is None or heartbeat.process_epoch != known.heartbeat.process_epoch:
            return []
        del self._peers[heartbeat.instance]
        return [PeerLost(known.heartbeat, "goodbye")]

    def to_fields(self) -> list[list[object]]:
        """Plain values for a core's snapshot."""
        return [
            [list(p.heartbeat.__dict__.values()), p.heard_s, p.progress_s]
            for _, p in sorted(self._peers.items())
        ]

    def restore(self, fields: list[list[object]]) -> None:
        """The state that ``to_fields`` gave."""
        names = list(HeartbeatSent.model_fields)
        self._peers = {}
        for values, heard_s, progress_s in fields:
            assert isinstance(values, list)
            assert isinstance(heard_s, float)
            assert isinstance(progress_s, float)
            heartbeat = HeartbeatSent.model_validate(dict(zip(names, values, strict=False)))
            self._peers[heartbeat.instance] = Peer(heartbeat, heard_s, progress_s)
