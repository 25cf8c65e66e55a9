"""`switchyard users`: who may log in over HTTP, and as what.

switchyard users put NAME --role admin|user|node --password-file FILE    FILE -: standard input
switchyard users remove NAME

The first password of `admin` is in the folder `access` of the yard's data.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Final

from components.cli import found
from components.cli.errors import CommandFailed

ANSWER_S: Final = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    what = parser.add_subparsers(dest="what", required=True, metavar="put|remove")
    put = what.add_parser("put", help="make an account, or change its password or roles")
    put.add_argument("--role", action="append", default=[], choices=("admin", "user", "node"))
    put.add_argument("--password-file", metavar="FILE", help="- reads standard input")
    remove = what.add_parser("remove", help="its sessions end too")
    for command in (put, remove):
        command.add_argument("name", metavar="NAME")
        found.add_arguments(command)


def run(args: argparse.Namespace) -> int:
    from bus.errors import BusError
    from schemas.access import PutUser

    removes = args.what == "remove"
    question = PutUser(
        username=args.name,
        password="" if removes else password(args.password_file),
        roles=() if removes else tuple(args.role),
        remove=removes,
    )
    try:
        detail = asyncio.run(_ask(found.yard(args), question))
    except BusError as error:
        raise CommandFailed(str(error)) from error
    if detail:
        raise CommandFailed(detail)
    print(f"{args.name} {'removed' if removes else 'may log in'}")
    return 0


def password(file: str | None) -> str:
    """Never from the command line: others see that."""
    if file is None:
        return ""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror}") from error
    return text.strip("\r\n")


async def _ask(yard: found.Found, question: object) -> str:
    """Why it was not done; empty when it was."""
    from bus.subjects import put_user
    from components.cli.operator_bus import operator
    from schemas.access import PutUser, PutUserReply

    assert isinstance(question, PutUser)
    async with operator(yard) as bus:
        reply = await bus.ask(put_user(), question, PutUserReply, timeout_s=ANSWER_S)
    return "" if reply.done else reply.detail
