"""Records are read once at the start, however long JetStream takes to be there."""

from collections.abc import Awaitable, Callable
from typing import Final

from bus.errors import StreamUnavailable
from components.host.host import Host

RETRY_S: Final = 1.0


async def until_read(host: Host, what: str, load: Callable[[], Awaitable[None]]) -> None:
    """Call ``load`` until the store answers; ``what`` is named in the log meanwhile."""
    while True:
        try:
            await load()
            return
        except StreamUnavailable as error:
            host.log.warning("%s cannot be read yet: %s", what, error)
            await host.clock.sleep(RETRY_S)
