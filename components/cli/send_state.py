"""`switchyard send-state`: one ELRAR datagram to the bridge, as an engine elsewhere sends it."""

import argparse
import json
import socket
import time
from typing import Any

from components.cli import found
from components.cli.component import assignment
from components.cli.errors import CommandFailed

DEFAULT_PORT = 9999


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine-id", default="test-engine", metavar="ID", help="default: %(default)s")
    add("--host", help="where the bridge listens; default: that of the `up` that runs")
    add("--port", type=int, help=f"default: that of the `up` that runs, or {DEFAULT_PORT}")
    add(
        "--field",
        action="append",
        default=[],
        type=assignment,
        metavar="KEY=VALUE",
        help="another value for a field; numbers are numbers; repeatable",
    )
    add(
        "--sign",
        metavar="FILE",
        help="sign it with the first key in this file (KEY_ID HEX, mode 0600)",
    )
    found.add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    from components.bridge.datagram import test_datagram

    host, port = address(args)
    fields = {key: value_of(text) for key, text in args.field}
    now_ms = time.time_ns() // 1_000_000
    plain = datagram = test_datagram(args.engine_id, now_ms, **fields)
    if args.sign:
        datagram = signed(plain, args.sign, now_ms)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram, (host, port))
    except OSError as error:
        raise CommandFailed(f"cannot send to {host}:{port}: {error.strerror or error}") from error
    print(f"sent {len(datagram)} bytes to udp {host}:{port}: {plain.decode()}")
    print("see it with: switchyard status, or switchyard events ENGINE_STATE --limit 1")
    return 0


def address(args: argparse.Namespace) -> tuple[str, int]:
    """Where to send: what the flags say, else where the `up` that runs listens."""
    if args.host or args.port:
        return args.host or "127.0.0.1", args.port or DEFAULT_PORT
    host, _, port = found.page(args.data).udp.rpartition(":")
    return host.strip("[]"), int(port)


def signed(plain: bytes, file: str, now_ms: int) -> bytes:
    """The datagram as a sender of its own life signs its first one."""
    from components.domain.signed_frame import BadKeys, sign
    from components.host.signing_keys import read_keys

    try:
        key_id, key = next(iter(read_keys(file).items()))
    except BadKeys as error:
        raise CommandFailed(str(error)) from error
    return sign(plain, key_id=key_id, key=key, epoch=now_ms, seq=1, sent_ms=now_ms)


def value_of(text: str) -> Any:
    """A JSON value when it reads as one, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
