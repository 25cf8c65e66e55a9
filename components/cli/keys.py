"""`switchyard keys`: API keys of tenants, for clients over HTTP.

switchyard keys make TENANT [--name TEXT] [--expires 90d]    prints the key, once
switchyard keys list [--tenant TENANT]
switchyard keys revoke ID                                    within a moment at every gateway

A gateway takes them as `Authorization: Bearer sy-...`; it wants one of everybody with
`api_keys = "required"` in `[gateway]`.
"""

import argparse
import json
import secrets
import time
from typing import TYPE_CHECKING, Final

from components.cli import found, instants
from components.cli.columns import columns
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from bus.nats_bus import NatsBus
    from schemas.keys import ApiKey, KeyAnswer

ANSWER_S: Final = 5.0
HEAD: Final = ("ID", "TENANT", "STATE", "MADE", "ENDS", "NAME")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    what = parser.add_subparsers(dest="what", required=True, metavar="make|list|revoke")
    make = what.add_parser("make", help="a new key of a tenant; it is shown once")
    make.add_argument("tenant", metavar="TENANT")
    make.add_argument("--name", default="", metavar="TEXT", help="what it is for")
    make.add_argument("--expires", metavar="SPAN", help="such as 12h or 90d; default: never")
    listed = what.add_parser("list", help="keys, without what proves them")
    listed.add_argument("--tenant", default="", metavar="TENANT", help="only of this one")
    revoke = what.add_parser("revoke", help="nobody is let in with it any more")
    revoke.add_argument("id", metavar="ID", help="as in `list`: the part behind sy-")
    for command in (make, listed, revoke):
        command.add_argument("--json", action="store_true", help="as JSON on standard output")
        found.add_arguments(command)


def run(args: argparse.Namespace) -> int:
    from components.cli.operator_bus import ask_registry

    work = {"make": _make, "list": _list, "revoke": _revoke}[args.what]
    ask_registry(found.yard(args), lambda bus: work(bus, args))
    return 0


async def _make(bus: "NatsBus", args: argparse.Namespace) -> None:
    """The secret is made here and stays here: the registry gets its hash."""
    from bus.subjects import make_key
    from components.domain import api_keys
    from schemas.keys import MakeKey, MakeKeyReply

    text = api_keys.written(secrets.token_hex(6), secrets.token_urlsafe(32))
    shown = api_keys.read(text)
    assert shown is not None
    question = MakeKey(
        key_id=shown.key_id,
        digest=shown.digest,
        tenant=_tenant(args.tenant),
        name=args.name[:128],
        expires_ms=_ends_ms(args.expires, _now_ms()),
    )
    reply = await bus.ask(make_key(), question, MakeKeyReply, timeout_s=ANSWER_S)
    key = _done(reply)
    if args.json:
        print(json.dumps({**_plain(key), "key": text}))
    else:
        print(text)


async def _list(bus: "NatsBus", args: argparse.Namespace) -> None:
    from bus.paging import read_pages
    from bus.subjects import list_keys
    from schemas.keys import ListKeys, ListKeysReply

    async def ask(after: str) -> ListKeysReply:
        question = ListKeys(after=after, tenant=args.tenant)
        reply = await bus.ask(list_keys(), question, ListKeysReply, timeout_s=ANSWER_S)
        if reply.refusal is not None:
            raise CommandFailed(reply.detail)
        return reply

    pages = await read_pages(ask, lambda page: [key.key_id for key in page.keys])
    keys = [key for page in pages for key in page.keys]
    if args.json:
        print(json.dumps([_plain(key) for key in keys]))
    else:
        print(columns(HEAD, [_row(key, _now_ms()) for key in keys]))


async def _revoke(bus: "NatsBus", args: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from bus.subjects import revoke_key
    from schemas.keys import RevokeKey, RevokeKeyReply

    key_id = args.id.removeprefix("sy-").partition("-")[0]
    try:
        question = RevokeKey(key_id=key_id)
    except ValidationError as error:
        raise CommandFailed(f"{args.id!r} is no id of a key; see: switchyard keys list") from error
    key = _done(await bus.ask(revoke_key(), question, RevokeKeyReply, timeout_s=ANSWER_S))
    print(json.dumps(_plain(key)) if args.json else f"{key.key_id} of {key.tenant} is revoked")


def _done(reply: "KeyAnswer") -> "ApiKey":
    if reply.key is None:
        raise CommandFailed(reply.detail)
    return reply.key


def _tenant(name: str) -> str:
    if not 0 < len(name) <= 128 or not all("!" <= c <= "~" for c in name):
        raise CommandFailed("a tenant has 1 to 128 printable ASCII characters, no spaces", 2)
    return name


def _ends_ms(span: str | None, now_ms: int) -> int:
    """When a key ends that is good for ``span`` from now on; 0: never."""
    if span is None:
        return 0
    length_ms = instants.span_ms(span)
    if not length_ms:
        raise CommandFailed(f"{span!r} is no span; write 12h or 90d", 2)
    return now_ms + length_ms


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def state_of(key: "ApiKey", now_ms: int) -> str:
    """``good``, ``revoked`` or ``ended``."""
    if key.revoked_ms:
        return "revoked"
    return "ended" if 0 < key.expires_ms <= now_ms else "good"


def _row(key: "ApiKey", now_ms: int) -> tuple[str, ...]:
    ends = instants.show(key.expires_ms) if key.expires_ms else "never"
    made = instants.show(key.created_ms)
    return key.key_id, key.tenant, state_of(key, now_ms), made, ends, key.name


def _plain(key: "ApiKey") -> dict[str, object]:
    values: dict[str, object] = key.model_dump(exclude={"revision"})
    return {**values, "state": state_of(key, _now_ms())}
