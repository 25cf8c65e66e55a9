"""nats-py's client, on whichever event loop runs.

At what is written to a connection that is closed, uvloop raises ``RuntimeError``. nats-py counts on
``OSError``: with anything else whatever sends fails, and a reconnection that meets it is never
tried again.
"""

import contextlib
from collections.abc import Iterable

from nats.aio.client import Client
from nats.aio.transport import TcpTransport


class ConnectionIsClosed(ConnectionError):
    """Nothing was written. What nats-py was to send it keeps for the next connection."""


class SteadyTransport(TcpTransport):
    """Says in nats-py's words that the connection is closed."""

    def __bool__(self) -> bool:
        """True from the start: instead of one that is not, nats-py makes one of its own."""
        return True

    def write(self, payload: bytes) -> None:
        self.writelines([payload])

    def writelines(self, payload: Iterable[bytes]) -> None:
        if not super().__bool__():  # type: ignore[no-untyped-call]
            raise ConnectionIsClosed("not connected yet")
        try:
            super().writelines(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionIsClosed(str(error)) from error


class SteadyClient(Client):
    """Survives what uvloop makes of a lost connection. Not connected yet."""

    def __init__(self) -> None:
        super().__init__()
        self._transport = SteadyTransport()  # type: ignore[no-untyped-call]


async def end(client: Client) -> None:
    """Close it, whatever has become of its connection."""
    with contextlib.suppress(OSError):
        await client.close()
