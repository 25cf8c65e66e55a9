"""A connection of the operator: it may ask everyone, and say nothing else."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bus.errors import AskTimedOut, BusError, NoResponders
from bus.nats_bus import NatsBus
from components.cli import keyring
from components.cli.errors import CommandFailed
from components.cli.found import Found
from components.cli.keyring import OPERATOR

CONNECT_TIMEOUT_S: Final = 3.0


@asynccontextmanager
async def operator(yard: Found) -> AsyncIterator[NatsBus]:
    """The operator's bus in this yard; raises ``NotConnected``, or ``CommandFailed`` for no key."""
    key_file = keyring.find(yard.keys, OPERATOR, OPERATOR)
    async with connected(yard.nats_url, key_file, yard.prefix) as bus:
        yield bus


def ask_registry(yard: Found, work: Callable[[NatsBus], Awaitable[None]]) -> None:
    """Run ``work`` on the operator's bus; raises ``CommandFailed``, also where none answers."""

    async def asked() -> None:
        async with operator(yard) as bus:
            await work(bus)

    try:
        asyncio.run(asked())
    except (NoResponders, AskTimedOut) as error:
        raise CommandFailed("no registry answers; see: switchyard status") from error
    except BusError as error:
        raise CommandFailed(str(error)) from error


@asynccontextmanager
async def connected(url: str, key_file: Path | None, prefix: str) -> AsyncIterator[NatsBus]:
    """A connected bus; raises ``NotConnected``."""
    bus = NatsBus(
        url,
        source=OPERATOR,
        epoch=time.time_ns() // 1_000_000,
        key_file=key_file,
        prefix=prefix,
        connect_timeout_s=CONNECT_TIMEOUT_S,
    )
    await bus.connect()
    try:
        yield bus
    finally:
        await bus.close()
