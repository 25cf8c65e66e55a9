"""`switchyard status`: who is there, how engines fare, what the bus holds.

Exits 1 when something is missing or not well, so that a script can wait for a healthy yard.
"""

import argparse
import asyncio
import json

from components.cli import found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="everything, counters too, as JSON")
    found.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from components.cli.status_look import look
    from components.cli.status_view import as_text

    snapshot = asyncio.run(look(found.yard(args)))
    print(json.dumps(snapshot.to_plain()) if args.json else as_text(snapshot))
    return 1 if snapshot.problems() else 0
