"""`switchyard replay`: the past of the fleet.

switchyard replay serve    one process that answers questions about the past, for `up`
"""

import argparse

from components.cli import component


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="serve")
    serve = what.add_parser("serve", help="run one reader of the past, in the foreground")
    serve.set_defaults(command="replay")
    component.add_arguments(serve)


def run(args: argparse.Namespace) -> int:
    return component.run(args)
