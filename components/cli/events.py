"""`switchyard events`: what a stream recorded, or with --follow what happens from now on."""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from components.cli import found
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from bus.history import History, Stored
    from components.replay.describe import Told

#: How many messages are shown when nothing else is said.
TAIL: Final = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("stream", metavar="STREAM", help="REQUESTS, ENGINE_STATE, FLEET, JOURNAL, TOKENS ...")
    add("--follow", action="store_true", help="what happens from now on (from SEQ with --from)")
    add("--from", type=int, dest="start", metavar="SEQ", help="start there, not near the end")
    add("--limit", type=int, metavar="N", help=f"at most N messages (default: the last {TAIL})")
    add("--subject", metavar="S", help="only of this subject; * and > match as in NATS")
    add("--request", metavar="ID", help="only what is about this request")
    add("--json", action="store_true", help="one JSON object per line")
    found.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from bus.errors import BusError
    from bus.streams import BY_NAME

    stream = args.stream.upper()
    if stream not in BY_NAME:
        raise CommandFailed(f"no stream {args.stream!r}; there are {', '.join(BY_NAME)}", 2)
    try:
        asyncio.run(_show(args, stream, found.yard(args)))
    except BusError as error:
        raise CommandFailed(str(error)) from error
    return 0


async def _show(args: argparse.Namespace, stream: str, yard: found.Found) -> None:
    from bus.history import History
    from components.cli import keyring
    from components.replay.describe import told

    key_file = keyring.find(yard.keys, keyring.HISTORY, keyring.HISTORY)
    async with History(yard.nats_url, key_file, prefix=yard.prefix) as history:
        left = args.limit
        async with aclosing(_stored(history, stream, args)) as messages:
            async for message in messages:
                _print(message, told(message.subject, message.data), args)
                left = None if left is None else left - 1
                if left == 0:
                    return


async def _stored(
    history: "History", stream: str, args: argparse.Namespace
) -> "AsyncGenerator[Stored, None]":
    """The messages that were asked for, without an end when following."""
    if args.follow:
        async for message in history.follow(stream, start_seq=args.start, subject=args.subject):
            yield message
        return
    state = await history.state(stream)
    start = args.start
    if start is None:
        start = max(state.first_seq, state.last_seq + 1 - (args.limit or TAIL), 1)
        if start > max(state.first_seq, 1):
            shown = state.last_seq + 1 - start
            told = f"the last {shown} of {state.messages} messages; all of them: --from 1"
            print(told, file=sys.stderr)
    async for message in history.read(stream, start_seq=start, subject=args.subject):
        yield message


def _print(message: "Stored", things: "Iterable[Told]", args: argparse.Namespace) -> None:
    for thing in things:
        if args.request is not None and thing.request_id != args.request:
            continue
        at = datetime.fromtimestamp(message.time_ms / 1000, tz=UTC)
        time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if args.json:
            where = {"stream_seq": message.seq, "time": time, "subject": message.subject}
            says = {"source": thing.source, "what": thing.what, **thing.plain}
            print(json.dumps({**where, **says}), flush=args.follow)
        else:
            line = f"{message.seq:>6} {time} {thing.source:<12} {thing.what:<24} {thing.text}"
            print(line.rstrip(), flush=args.follow)
