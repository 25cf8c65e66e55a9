"""`switchyard users`: who may log in over HTTP, and as what.

switchyard users put NAME --role admin|user|node --password-file FILE    FILE -: standard input
switchyard users remove NAME
switchyard users rotate-key [--now]    a new key signs sessions; --now: the old one became known

The first password of `admin` is in the folder `access` of the yard's data.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from components.cli import found
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from schemas.access import PutUserReply, RotateSigningKeyReply
    from schemas.message import Message

    Reply = TypeVar("Reply", PutUserReply, RotateSigningKeyReply)

ANSWER_S: Final = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    what = parser.add_subparsers(dest="what", required=True, metavar="put|remove|rotate-key")
    put = what.add_parser("put", help="make an account, or change its password or roles")
    put.add_argument("--role", action="append", default=[], choices=("admin", "user", "node"))
    put.add_argument("--password-file", metavar="FILE", help="- reads standard input")
    remove = what.add_parser("remove", help="its sessions end too")
    rotate = what.add_parser("rotate-key", help="a new key signs; tokens live on until they end")
    rotate.add_argument(
        "--now", action="store_true", help="refuse every token signed before: a key became known"
    )
    for command in (put, remove):
        command.add_argument("name", metavar="NAME")
    for command in (put, remove, rotate):
        found.add_arguments(command)


def run(args: argparse.Namespace) -> int:
    print(_rotate_key(args) if args.what == "rotate-key" else _put(args))
    return 0


def _put(args: argparse.Namespace) -> str:
    from schemas.access import PutUser, PutUserReply

    removes = args.what == "remove"
    question = PutUser(
        username=args.name,
        password="" if removes else password(args.password_file),
        roles=() if removes else tuple(args.role),
        remove=removes,
    )
    _done(args, question, PutUserReply)
    return f"{args.name} {'removed' if removes else 'may log in'}"


def _rotate_key(args: argparse.Namespace) -> str:
    from schemas.access import KEYS_AGAIN_S, RotateSigningKey, RotateSigningKeyReply

    reply = _done(args, RotateSigningKey(at_once=args.now), RotateSigningKeyReply)
    if reply.grace_s:
        return f"key {reply.kid} signs; tokens signed before count until they end"
    return (
        f"key {reply.kid} signs; each gateway refuses every token signed before"
        f" within {KEYS_AGAIN_S} s, and whoever has one refreshes it"
    )


def password(file: str | None) -> str:
    """Never from the command line: others see that."""
    if file is None:
        return ""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror}") from error
    return text.strip("\r\n")


def _done(args: argparse.Namespace, question: "Message", kind: "type[Reply]") -> "Reply":
    """What the registry says when it did it; raises ``CommandFailed``."""
    from bus.errors import BusError, NoResponders

    try:
        reply = asyncio.run(_ask(found.yard(args), question, kind))
    except NoResponders as error:
        raise CommandFailed(
            "no registry keeps accounts here: one must run, with registry.access_dir"
        ) from error
    except BusError as error:
        raise CommandFailed(str(error)) from error
    if not reply.done:
        raise CommandFailed(reply.detail)
    return reply


async def _ask(yard: found.Found, question: "Message", kind: "type[Reply]") -> "Reply":
    from bus.subjects import function_of
    from components.cli.operator_bus import operator

    subject: str = function_of(type(question))()
    async with operator(yard) as bus:
        return await bus.ask(subject, question, kind, timeout_s=ANSWER_S)
