"""A connection of the operator: it may ask everyone, and say nothing else."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bus.nats_bus import NatsBus
from components.cli import keyring
from components.cli.found import Found
from components.cli.keyring import OPERATOR

CONNECT_TIMEOUT_S: Final = 3.0


@asynccontextmanager
async def operator(yard: Found) -> AsyncIterator[NatsBus]:
    """The operator's bus in this yard; raises ``NotConnected``, or ``CommandFailed`` for no key."""
    key_file = keyring.find(yard.keys, OPERATOR, OPERATOR)
    async with connected(yard.nats_url, key_file, yard.prefix) as bus:
        yield bus


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
