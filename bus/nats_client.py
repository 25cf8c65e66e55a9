"""nats-py's client, on whichever event loop runs.

To what is written to a connection that is closed, asyncio's own loop says nothing, and the next
``drain`` raises ``ConnectionResetError``: that is how nats-py comes to know. uvloop raises
``RuntimeError`` at the write, which nats-py does not take for the end of a connection: what sends
fails with it, and a reconnection that meets it is never tried again.
"""

import contextlib
from collections.abc import Iterable

from nats.aio.client import Client
from nats.aio.transport import TcpTransport


class SteadyTransport(TcpTransport):
    """Takes whatever is written; that the connection is closed is told by ``drain``."""

    def __bool__(self) -> bool:
        """True from the start: instead of one that is not, nats-py makes one of its own."""
        return True

    def write(self, payload: bytes) -> None:
        self.writelines([payload])

    def writelines(self, payload: Iterable[bytes]) -> None:
        if super().__bool__():  # type: ignore[no-untyped-call]
            with contextlib.suppress(RuntimeError):
                super().writelines(payload)  # type: ignore[no-untyped-call]


class SteadyClient(Client):
    """Survives what uvloop makes of a lost connection. Not connected yet."""

    def __init__(self) -> None:
        super().__init__()
        self._transport = SteadyTransport()  # type: ignore[no-untyped-call]


async def end(client: Client) -> None:
    """Close it, whatever has become of its connection."""
    with contextlib.suppress(OSError):
        await client.close()
