"""Which past a command reads: the running yard's streams, or a bundle."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.cli import found
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from components.replay.past import Past


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", metavar="FILE", help="read this exported bundle; no server is needed"
    )
    found.add_arguments(parser)


@asynccontextmanager
async def source(args: argparse.Namespace) -> AsyncIterator["Past"]:
    """The past that the flags mean; raises ``CommandFailed``, ``NotConnected``."""
    if args.bundle:
        yield bundle(Path(args.bundle))
        return
    from bus.history import History
    from components.cli import keyring

    yard = found.yard(args)
    key_file = keyring.find(yard.keys, keyring.HISTORY, keyring.HISTORY)
    async with History(yard.nats_url, key_file, prefix=yard.prefix) as history:
        yield history


def bundle(path: Path) -> "Past":
    """An exported bundle; raises ``CommandFailed``."""
    from components.replay.bundle import BadBundle
    from components.replay.bundle_reader import open_bundle

    try:
        return open_bundle(path)
    except BadBundle as error:
        raise CommandFailed(str(error)) from error
