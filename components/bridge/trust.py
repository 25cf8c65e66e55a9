"""Whom the bridge believes. Pure.

required  signed frames only
mixed     signed frames; plain datagrams only from listed networks about listed engines
legacy    whatever comes, as the seed's gateway: for a closed network, or for one machine
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from components.bridge.datagram import BadDatagram, Datagram, read
from components.bridge.windows import Windows
from components.domain.signed_frame import BadFrame, is_frame, verify

Mode = Literal["required", "mixed", "legacy"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Why a whole datagram was not believed. For programs: counters are named after these.
_UNTRUSTED: Final = {"replayed", "old_epoch", "clock", "before_start"}


class NotBelieved(ValueError):
    """Count it under ``reason`` and drop it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


@dataclass(frozen=True, slots=True)
class Heard:
    """A datagram that is believed. ``late``: a later one of its sender was heard before it.

    ``copy``: it came another way just before.
    """

    datagram: Datagram
    sender: tuple[str, str] | None = None
    epoch: int = 0
    seq: int = 0
    late: bool = False
    copy: bool = False

    @property
    def signed(self) -> bool:
        return self.sender is not None


@dataclass(slots=True)
class Trust:
    """``networks`` and ``engines`` are what ``mixed`` lets in without a signature."""

    mode: Mode
    keys: Mapping[str, bytes]
    windows: Windows
    networks: Sequence[Network] = ()
    engines: frozenset[str] = frozenset()
    _allowed: dict[str, bool] = field(default_factory=dict)

    def believe(self, data: bytes, host: str, now_s: float, wall_ms: int) -> Heard:
        """The state in ``data``; raises ``NotBelieved`` or ``BadDatagram``."""
        if is_frame(data):
            return self._signed(data, now_s, wall_ms)
        if self.mode == "required":
            raise NotBelieved("unsigned")
        if self.mode == "mixed" and not self._listed(host):
            raise NotBelieved("unsigned")
        datagram = read(data)
        if self.mode == "mixed" and datagram.engine_id not in self.engines:
            raise NotBelieved("unsigned")
        return Heard(datagram)

    def _signed(self, data: bytes, now_s: float, wall_ms: int) -> Heard:
        try:
            frame = verify(data, self.keys)
        except BadFrame as error:
            raise NotBelieved(error.reason) from None
        datagram = read(frame.payload)
        sender = (frame.key_id, datagram.engine_id)
        verdict = self.windows.take(sender, frame, now_s, wall_ms)
        if verdict in _UNTRUSTED:
            raise NotBelieved(verdict)
        late, copy = verdict == "late", verdict == "copy"
        return Heard(datagram, sender, frame.epoch, frame.seq, late=late, copy=copy)

    def _listed(self, host: str) -> bool:
        """Is the address in one of the networks? Remembers some, because few hosts send."""
        known = self._allowed.get(host)
        if known is None:
            try:
                address = ipaddress.ip_address(host.split("%", 1)[0])
            except ValueError:
                return False
            known = any(address in network for network in self.networks)
            if len(self._allowed) >= 4096:
                self._allowed.clear()
            self._allowed[host] = known
        return known


__all__ = ["BadDatagram", "Heard", "Mode", "NotBelieved", "Trust"]
