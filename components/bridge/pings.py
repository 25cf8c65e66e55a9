"""A ZMQ ROUTER socket that takes the pings of P2P engines. Imported only where pings are wanted."""

import asyncio
from collections.abc import Callable
from typing import Final

import zmq
import zmq.asyncio

from components.bridge.ping import PING_BYTES_MAX
from components.host.errors import CannotStart

#: Pings that may wait per engine. One in three seconds is normal.
WAITING_MAX: Final = 16
#: Read in one turn of the loop before others get theirs.
READ_MAX: Final = 256
HEARTBEAT_MS: Final = 10_000


class PingSocket:
    """Bound while open. ``on_ping`` gets the sender's identity and the frames that it sent.

    Nothing is ever sent: the socket is closed without lingering.
    """

    def __init__(self, host: str, port: int, on_ping: Callable[[bytes, list[bytes]], None]) -> None:
        self._place: Final = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._on_ping = on_ping
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)

    def open(self) -> None:
        """Bind; raises ``CannotStart``."""
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, WAITING_MAX),
            (zmq.SNDHWM, 1),
            # Whoever sends more is cut off by libzmq itself, before it takes memory here.
            (zmq.MAXMSGSIZE, PING_BYTES_MAX),
            # An engine that comes back under its name is heard even while its old link lingers.
            (zmq.ROUTER_HANDOVER, 1),
            # A peer that is gone without a word is noticed, and its socket freed.
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MS),
            (zmq.IPV6, 1 if "[" in self._place else 0),
        ):
            self._socket.setsockopt(option, value)
        try:
            self._socket.bind(self._place)
        except zmq.ZMQError as error:
            self.close()
            raise CannotStart(f"cannot listen for pings on {self._place}: {error}") from error

    async def read(self) -> None:
        """Hand over pings until cancelled."""
        while True:
            for _ in range(READ_MAX):
                sender, *frames = await self._socket.recv_multipart()
                self._on_ping(sender, frames)
            await asyncio.sleep(0)

    def close(self) -> None:
        """Harmless twice. End ``read`` first."""
        self._context.destroy(linger=0)
