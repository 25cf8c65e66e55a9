"""The HTTP server: uvicorn on our socket, under our lifecycle and with our protocol."""

import asyncio
import functools
import ipaddress
import socket
from typing import Any, cast

import uvicorn

from components.gateway.app import Asgi
from components.gateway.protocol import GatewayProtocol
from components.gateway.settings import GatewaySettings
from components.host.errors import CannotStart
from components.host.tasks import Tasks

#: What may still be on its way to clients when everything else has ended.
CLOSE_S = 1.0


class HttpServer:
    """Listens from ``start`` to ``stop``; signals are the process's business, not uvicorn's."""

    def __init__(self, app: Asgi, settings: GatewaySettings, tasks: Tasks) -> None:
        self._settings = settings
        self._tasks = tasks
        self._socket: socket.socket | None = None
        protocol = functools.partial(GatewayProtocol, settings=settings)
        config = uvicorn.Config(
            cast("Any", app),
            http=cast("Any", protocol),
            ws="none",
            loop="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=cast("int", settings.keep_alive_s),
            timeout_graceful_shutdown=cast("int", CLOSE_S * 2),
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)

    @property
    def address(self) -> str | None:
        """``host:port`` once it listens."""
        if self._socket is None:
            return None
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Raises ``CannotStart`` when the port is taken."""
        settings = self._settings
        self._socket = _listening(settings.host, settings.port, settings.send_buffer_bytes)
        await self._server.startup(sockets=[self._socket])
        await self._set_date()
        _ = self._tasks.every("http.clock", 1.0, self._set_date)

    async def stop(self) -> None:
        """Close the socket and what is connected; harmless twice."""
        if self._socket is None:
            return
        listening, self._socket = self._socket, None
        late = asyncio.get_running_loop().call_later(CLOSE_S, self._drop_connections)
        await self._server.shutdown(sockets=[listening])
        late.cancel()

    async def _set_date(self) -> None:
        """What uvicorn's own main loop does once a second: the ``date`` header."""
        await self._server.on_tick(0)

    def _drop_connections(self) -> None:
        """Whoever has not taken the end of its answer by now does not read."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()


def _listening(host: str, port: int, send_buffer_bytes: int) -> socket.socket:
    """A bound socket; host names are not resolved, addresses and ``localhost`` are enough.

    Connections inherit the send buffer, so slow clients cannot fill the kernel's memory.
    """
    address = "127.0.0.1" if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError as error:
        raise CannotStart(f"{host!r} is not an IP address to listen on") from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        bound.bind((address, port))
    except OSError as error:
        bound.close()
        raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound
