"""`switchyard join ROLE`: one worker for an `up` that runs without (or beside) its own.

`up --no-workers --prefill 1 --decode 1` makes the keys; each `join` takes one, in the foreground.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from components.cli import component, found, keyring
from components.cli.errors import CommandFailed
from schemas.codes import Role


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("joins_as", choices=get_args(Role), metavar="ROLE", help="prefill, decode or aggregated")
    add("--number", type=int, default=0, metavar="N", help="which of its role (default: 0)")
    found.add_data_argument(parser)
    parser.set_defaults(command="worker")
    component.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    options = {k: v for k, v in vars(args).items() if k not in {"joins_as", "number", "data"}}
    given = component.overrides(argparse.Namespace(**options))
    mine = overrides(found.yard(argparse.Namespace(nats=None, data=args.data)), args)
    main: Callable[[component.Overrides], int] = importlib.import_module(
        "components.worker.main"
    ).main
    return main({**mine, **given})


def overrides(yard: found.Found, args: argparse.Namespace) -> component.Overrides:
    """What the worker is told of the yard; raises ``CommandFailed`` without a key for it."""
    instance = f"{args.joins_as}-{args.number}"
    try:
        key_file = keyring.find(yard.keys, "worker", instance)
    except CommandFailed as error:
        raise CommandFailed(
            f"{error}. Start the yard with `switchyard up --no-workers"
            f" --{args.joins_as} {args.number + 1} ...`, which makes one"
        ) from error
    told: component.Overrides = {
        "role": args.joins_as,
        "host.instance": instance,
        "host.nats_url": yard.nats_url,
        "host.subject_prefix": yard.prefix,
    }
    if key_file is not None:
        told["host.nats_key_file"] = str(key_file)
        told["connector_key_file"] = connector_key(key_file.parent, instance)
    return told


def connector_key(folder: Path, worker: str) -> str:
    from components.cli.connectors import arguments

    words = arguments(folder, worker, ranks=1)
    return words[1].partition("=")[2]
