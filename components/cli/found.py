"""How the other commands find a yard: by the page of its `up`, or by flags."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from components.cli.errors import CommandFailed
from components.cli.rundir import RunDir, RunFile, default_data_dir


@dataclass(frozen=True, slots=True)
class Found:
    """Where the bus is. ``page`` is what `up` says of itself, when it was found by that."""

    nats_url: str
    keys: Path | None
    prefix: str
    page: RunFile | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    parser.add_argument("--nats", metavar="URL", help="ask at this NATS instead")
    parser.add_argument("--keys", type=Path, metavar="DIR", help="folder of nkey seeds for --nats")
    parser.add_argument(
        "--subject-prefix", default="yard", metavar="P", help="for --nats (default: %(default)s)"
    )


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder that `up` was given")


def folder(data: Path | None) -> RunDir:
    """The folder that ``--data`` means, by default the user's own."""
    return RunDir(data or default_data_dir(os.environ, Path.home()))


def page(data: Path | None) -> RunFile:
    """What the `up` of this folder says; raises ``CommandFailed`` when none runs."""
    where = folder(data)
    found = where.read()
    if found is None:
        raise CommandFailed(
            f"no `switchyard up` runs on {where.path}."
            " Start one, or say where with --data or --nats"
        )
    return found


def yard(args: argparse.Namespace) -> Found:
    """The yard that the flags mean; raises ``CommandFailed``."""
    if args.nats:
        return Found(args.nats, args.keys, args.subject_prefix)
    here = page(args.data)
    keys = Path(here.keys_dir) if here.keys_dir else None
    return Found(here.nats_url, keys, here.subject_prefix, here)
