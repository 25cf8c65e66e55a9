"""`switchyard replay`: the past of the fleet, of a running yard or of an exported bundle.

switchyard replay tail                    what happens from now on
switchyard replay at INSTANT              the fleet as it was
switchyard replay range FROM TO           what happened between, at once or --speed times as fast
switchyard replay export FILE             an incident as one file, from FROM to TO
switchyard replay import FILE             check a bundle and keep it under a name
switchyard replay bundles                 what was imported; --remove NAME
switchyard replay run                     the journal again: same cores, or other policies
switchyard replay serve                   one process that answers such questions, for `up`

With --bundle, `at`, `range`, `run`, `export` and `switchyard explain` read a bundle instead,
without a server: one that was imported by its name, any other by its file.

Instants: 2026-11-26T14:03:05Z, 14:03:05, 90s or 5m (ago), now, or milliseconds since 1970.
"""

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from components.cli import component, found, instants, past_source
from components.cli.errors import CommandFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    what = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    serve = what.add_parser("serve", help="run one reader of the past, in the foreground")
    serve.set_defaults(command="replay")
    component.add_arguments(serve)
    _lines(what.add_parser("tail", help="what happens from now on"))
    at = what.add_parser("at", help="the fleet as it was at an instant")
    at.add_argument("instant", metavar="INSTANT", help=instants.FORMS)
    span = what.add_parser("range", help="what happened between two instants")
    span.add_argument("begin", metavar="FROM", help=instants.FORMS)
    span.add_argument("end", metavar="TO", nargs="?", default="now", help="default: %(default)s")
    span.add_argument("--speed", type=float, metavar="X", help="1: as it was; default: at once")
    _lines(span)
    export = what.add_parser("export", help="an incident as one file")
    export.add_argument("file", type=Path, metavar="FILE", help="where to write the bundle")
    _span(export)
    taken = what.add_parser("import", help="check a bundle and keep it under a name")
    taken.add_argument("file", type=Path, metavar="FILE")
    taken.add_argument("--name", help="default: that of the file, without .zip")
    kept = what.add_parser("bundles", help="the bundles that were imported")
    kept.add_argument("--remove", metavar="NAME", help="keep this one no longer")
    again = what.add_parser("run", help="the journal again through the same cores")
    again.add_argument("--policy", metavar="ORDER", help="of the scheduler's queue, instead")
    again.add_argument("--route", metavar="POLICY", help="of the router's choices, instead")
    _span(again)
    for command in (at, span, export, again):
        past_source.add_arguments(command)
    for command in (taken, kept):
        found.add_data_argument(command)
    for command in (at, taken, kept, again):
        command.add_argument("--json", action="store_true", help="as JSON on standard output")


def _span(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="begin", metavar="INSTANT", help="default: the beginning")
    parser.add_argument("--to", dest="end", metavar="INSTANT", default="now", help="default: now")


def _lines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stream", action="append", metavar="NAME", help="only of this stream; repeatable"
    )
    parser.add_argument("--request", metavar="ID", help="only what is about this request")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    if parser.prog.endswith("tail"):
        found.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.what == "serve":
        return component.run(args)
    from bus.errors import BusError
    from components.cli import replay_commands as commands

    work: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, int]]] = {
        "tail": commands.tail,
        "at": commands.at,
        "range": commands.between,
        "export": commands.export,
        "import": commands.take,
        "bundles": commands.kept,
        "run": commands.again,
    }
    try:
        return asyncio.run(work[args.what](args))
    except BusError as error:
        raise CommandFailed(str(error)) from error
    except instants.BadInstant as error:
        raise CommandFailed(str(error), 2) from error
