"""Which past a command reads: the running yard's streams, or a bundle."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.cli import found
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from components.cli.bundles import Bundles
    from components.replay.past import Past


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        metavar="BUNDLE",
        help="read this exported bundle, by its file or the name it was imported under;"
        " no server is needed",
    )
    found.add_arguments(parser)


@asynccontextmanager
async def source(args: argparse.Namespace) -> AsyncIterator["Past"]:
    """The past that the flags mean; raises ``CommandFailed``, ``NotConnected``."""
    if args.bundle:
        yield _bundle(args)
        return
    from bus.history import History
    from components.cli import keyring

    yard = found.yard(args)
    key_file = keyring.find(yard.keys, keyring.HISTORY, keyring.HISTORY)
    async with History(yard.nats_url, key_file, prefix=yard.prefix) as history:
        yield history


def library(args: argparse.Namespace) -> "Bundles":
    """What was imported on this machine, or into ``--data``."""
    from components.cli.bundles import Bundles

    return Bundles(found.folder(args.data).bundles)


def _bundle(args: argparse.Namespace) -> "Past":
    """A file comes before a name; raises ``CommandFailed``."""
    from components.replay.bundle import BadBundle
    from components.replay.bundle_reader import open_bundle

    file = Path(args.bundle)
    path = file if file.is_file() else library(args).find(args.bundle)
    if path is None:
        raise CommandFailed(
            f"there is no file {args.bundle}, and no bundle was imported under that name;"
            " see: switchyard replay bundles"
        )
    try:
        return open_bundle(path)
    except BadBundle as error:
        raise CommandFailed(str(error)) from error
