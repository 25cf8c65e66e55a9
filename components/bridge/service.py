"""A UDP socket whose datagrams become events; what registers engines is in ``registrar.py``.

Datagrams are collected during a turn of the loop and handled together: one reading of the clocks,
one publication per state, all in one write to the bus.
"""

import asyncio
import os
import socket
from pathlib import Path

from bus import subjects
from bus.bus import Received, Subscription
from components.bridge.core import BridgeCore
from components.bridge.registrar import Registrar
from components.bridge.settings import BridgeSettings
from components.host.errors import CannotStart
from components.host.host import Host
from schemas.engine import ShowStates

Address = tuple[str, int]


class BridgeService(asyncio.DatagramProtocol):
    """The bridge as a component."""

    def __init__(self, host: Host, settings: BridgeSettings) -> None:
        self._host = host
        self._settings = settings
        self._core = BridgeCore(
            datagram_bytes_max=settings.datagram_bytes_max,
            source_per_s=settings.source_per_s,
            source_burst=settings.source_burst,
            sources_max=settings.sources_max,
            total_per_s=settings.total_per_s,
            total_burst=settings.total_burst,
            stale_after_s=settings.stale_after_s,
            purge_after_s=settings.purge_after_s,
            order_ttl_s=settings.order_ttl_s,
            engines_max=settings.engines_max,
        )
        self._registrar = Registrar(host, settings)
        self._pending: list[tuple[bytes, Address]] = []
        self._socket: socket.socket | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._address: str | None = None
        self._shown: Subscription | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._socket = await _bound(self._settings)
        given = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        host, port = self._socket.getsockname()[:2]
        self._address = f"udp://[{host}]:{port}" if ":" in host else f"udp://{host}:{port}"
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self._socket)
        await self._registrar.start()
        subject = subjects.show_states(self._host.instance)
        self._shown = await self._host.bus.subscribe(subject, ShowStates, self._show)
        self._host.tasks.every("bridge.tick", 1.0, self._tick)
        self._host.log.info(
            "listening", extra={"address": self._address, "receive_buffer_bytes": given}
        )

    async def drain(self, deadline_s: float) -> None:
        """Take what the socket still gives in this turn, then close it."""
        await asyncio.sleep(0)
        await self.stop()

    async def stop(self) -> None:
        await self._registrar.stop()
        shown, self._shown = self._shown, None
        if shown is not None:
            await shown.unsubscribe()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        elif self._socket is not None:
            self._socket.close()
        self._handle_pending()

    def heartbeat(self) -> dict[str, object]:
        return {"address": self._address}

    def _show(self, asked: Received[ShowStates]) -> None:
        reply = self._core.show(asked.message, self._host.clock.now_s())
        self._host.bus.respond(asked, reply)

    # asyncio.DatagramProtocol

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if len(self._pending) >= self._settings.pending_max:
            self._host.counters.add("pending_dropped_total")
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._handle_pending)
        self._pending.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self._host.counters.add("socket_errors_total")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._host.fault(exc)

    def _handle_pending(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        now_s, wall_ms = self._host.clock.now_s(), self._host.clock.wall_ms()
        for data, addr in pending:
            event = self._core.on_datagram(data, addr[0], addr[1], now_s, wall_ms)
            if event is not None:
                self._host.bus.publish(subjects.engine_state_received(event.engine_id), event)
        self._host.counters.update(self._core.totals)

    def _tick(self) -> None:
        now_s = self._host.clock.now_s()
        self._core.on_tick(now_s)
        self._host.counters.update(self._core.levels(now_s))
        if self._transport is not None and self._socket is not None:
            self._host.counters["kernel_dropped_total"] = kernel_dropped(self._socket)


def kernel_dropped(bound: socket.socket) -> int:
    """Datagrams that the kernel dropped because the socket's buffer was full; 0 where unknown."""
    inode = str(os.fstat(bound.fileno()).st_ino)
    table = Path("/proc/net/udp6" if bound.family == socket.AF_INET6 else "/proc/net/udp")
    try:
        rows = [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return 0
    return next((int(row[-1]) for row in rows if row[9] == inode), 0)


async def _bound(settings: BridgeSettings) -> socket.socket:
    """A bound, non-blocking socket; raises ``CannotStart``."""
    place = f"UDP {settings.bind_address}:{settings.udp_port}"
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            settings.bind_address,
            settings.udp_port,
            type=socket.SOCK_DGRAM,
            flags=socket.AI_PASSIVE,
        )
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setblocking(False)
    except OSError as error:
        raise CannotStart(f"cannot listen on {place}: {error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.receive_buffer_bytes)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise CannotStart(f"cannot listen on {place}: {error}") from error
    return bound
