"""The socket: bound, with a buffer as large as the kernel gives, read many datagrams at a time.

Broadcasts and datagrams to our own address come through one socket and are told apart by packet:
the kernel says to which address each was sent, and which of ours took it.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from components.host.errors import CannotStart

#: Linux's numbers; the module ``socket`` names some of them only in later versions.
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50
_SO_RCVBUFFORCE: Final = 33
#: An IPv4 datagram at an IPv6 socket brings both kinds.
_ANCILLARY_BYTES: Final = 128
_MAPPED: Final = "::ffff:"
_V4: Final = struct.Struct("=I4s4s")  # interface, the address of ours that took it, where it went

#: ``data, host, port, broadcast``
Packet = tuple[bytes, str, int, bool]


class Udp:
    """Calls ``take`` with what was there, at most ``turn_max`` packets, once per turn of the loop.

    A packet longer than ``bytes_max`` is given with one byte more than that, so that it is seen to
    be too long. IPv4 senders have IPv4 addresses whatever the socket is: networks, rates and
    readers know them by these.
    """

    def __init__(
        self,
        bound: socket.socket,
        take: Callable[[list[Packet]], None],
        *,
        bytes_max: int,
        turn_max: int,
        on_error: Callable[[OSError], None],
    ) -> None:
        self._socket = bound
        self._take = take
        self._bytes = bytes_max + 1
        self._turn = turn_max
        self._on_error = on_error
        self._closed = False
        asyncio.get_running_loop().add_reader(bound.fileno(), self.read)

    def read(self) -> None:
        """Take what is there now; more than one turn's worth waits for the next turn."""
        packets: list[Packet] = []
        receive, size = self._socket.recvmsg, self._bytes
        try:
            for _ in range(self._turn):
                data, ancillary, _, address = receive(size, _ANCILLARY_BYTES)
                host = address[0].removeprefix(_MAPPED)
                packets.append((data, host, address[1], _was_broadcast(ancillary)))
        except BlockingIOError:
            pass
        except OSError as error:
            self._on_error(error)
        if packets:
            self._take(packets)

    def close(self) -> None:
        """Take what is still there, then close. Harmless twice."""
        if self._closed:
            return
        self._closed = True
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self.read()
        self._socket.close()

    @property
    def address(self) -> str:
        """``udp://HOST:PORT``."""
        host, port = self._socket.getsockname()[:2]
        return f"udp://[{host}]:{port}" if ":" in host else f"udp://{host}:{port}"

    @property
    def buffer_bytes(self) -> int:
        """What the kernel gave; it counts its own bookkeeping in."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def kernel_dropped(self) -> int:
        """Datagrams dropped because the buffer was full; 0 where the kernel does not say."""
        return kernel_dropped(self._socket)


def _was_broadcast(ancillary: list[tuple[int, int, bytes]]) -> bool:
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _, ours, went_to = _V4.unpack_from(data)
            if ours != went_to:
                return True
        elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO and data[0] == 0xFF:
            return True  # multicast: IPv6 has no other way to everybody
    return False


async def bind(host: str, port: int, buffer_bytes: int) -> socket.socket:
    """A bound, non-blocking socket; raises ``CannotStart``. An IPv6 wildcard takes IPv4 as well."""
    place = f"UDP {host}:{port}"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setblocking(False)
    except OSError as error:
        raise CannotStart(f"cannot listen on {place}: {error}") from error
    try:
        _grow(bound, buffer_bytes)
        _ask_where_to(bound)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise CannotStart(f"cannot listen on {place}: {error}") from error
    return bound


def _grow(bound: socket.socket, buffer_bytes: int) -> None:
    """Who may, goes beyond net.core.rmem_max; who may not gets what that allows."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    if bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < buffer_bytes:
        with contextlib.suppress(OSError):
            bound.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)


def _ask_where_to(bound: socket.socket) -> None:
    if bound.family == socket.AF_INET:
        bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        return
    with contextlib.suppress(OSError):  # fixed by the system
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    with contextlib.suppress(OSError):
        bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def kernel_dropped(bound: socket.socket) -> int:
    """Datagrams that the kernel dropped because the socket's buffer was full; 0 where unknown."""
    inode = str(os.fstat(bound.fileno()).st_ino)
    table = Path("/proc/net/udp6" if bound.family == socket.AF_INET6 else "/proc/net/udp")
    try:
        rows = [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return 0
    return next((int(row[-1]) for row in rows if row[9] == inode), 0)
