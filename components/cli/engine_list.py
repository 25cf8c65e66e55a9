"""`switchyard engine list|show|forget`: the engines that there should be, heard or not."""

import argparse
import functools
import json
import time
from typing import TYPE_CHECKING, Any, Final

from components.cli import found
from components.cli.columns import columns, duration
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from bus.nats_bus import NatsBus
    from schemas.engines import KnownEngine
    from schemas.message import Message

ANSWER_S: Final = 5.0
HEAD: Final = ("ENGINE", "STATE", "SINCE", "HEARD", "ROLE", "MODEL", "HOST", "KIND", "GROUPS")
#: What one may want of records; everything else is a wish to a living engine.
ACTIONS: Final = ("list", "show", "forget")


def run(args: argparse.Namespace) -> int:
    from components.cli.operator_bus import ask_registry

    ask_registry(found.yard(args), functools.partial(_run, args))
    return 0


async def _run(args: argparse.Namespace, bus: "NatsBus") -> None:
    match args.action:
        case "list":
            engines, complete = await _all(bus, missing=args.missing)
            _print_all(engines, complete=complete, as_json=args.json)
        case "show":
            _print_one(await _show(bus, args.name), as_json=args.json)
        case _:
            await _forget(bus, args.name)
            said = json.dumps({"forgotten": args.name}) if args.json else ""
            print(said or f"{args.name} is forgotten")


async def _all(bus: "NatsBus", *, missing: bool) -> "tuple[list[KnownEngine], bool]":
    from bus.paging import read_pages
    from bus.subjects import list_engines
    from schemas.engines import ENGINES_PAGE_MAX, ListEngines, ListEnginesReply

    async def ask(after: str) -> ListEnginesReply:
        asked = ListEngines(after=after, limit=ENGINES_PAGE_MAX, missing=missing)
        return await bus.ask(list_engines(), asked, ListEnginesReply, timeout_s=ANSWER_S)

    pages = await read_pages(ask, lambda page: [known.record.engine for known in page.engines])
    # Each page may be another registry's answer.
    complete = all(page.complete for page in pages)
    return [known for page in pages for known in page.engines], complete


async def _show(bus: "NatsBus", name: str) -> "KnownEngine":
    from schemas.engines import ShowEngine, ShowEngineReply

    reply: Any = await _ask(bus, ShowEngine, name, ShowEngineReply)
    engine: KnownEngine = reply.engine
    return engine


async def _forget(bus: "NatsBus", name: str) -> None:
    from schemas.engines import ForgetEngine, ForgetEngineReply

    await _ask(bus, ForgetEngine, name, ForgetEngineReply)


async def _ask(bus: "NatsBus", question: Any, name: str, kind: "type[Message]") -> Any:
    from pydantic import ValidationError

    from bus.subjects import function_of

    try:
        asked = question(engine=name)
    except ValidationError as error:
        raise CommandFailed(f"{name!r} is no name of an engine", 2) from error
    reply: Any = await bus.ask(function_of(question)(), asked, kind, timeout_s=ANSWER_S)
    if reply.refusal is not None:
        raise CommandFailed(reply.detail)
    return reply


def _print_all(engines: "list[KnownEngine]", *, complete: bool, as_json: bool) -> None:
    if as_json:
        plain = [engine.model_dump(mode="json") for engine in engines]
        print(json.dumps({"complete": complete, "engines": plain}, indent=1))
        return
    print(table(engines, time.time_ns() // 1_000_000))
    if not complete:
        print("\nthe records cannot be read yet: who is not heard is not here")


def _print_one(engine: "KnownEngine", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(engine.model_dump(mode="json"), indent=1))
        return
    fields = {**dict(engine.record), **dict(engine.record.about)}
    del fields["about"]
    lines = [f"{name} = {value}" for name, value in fields.items()]
    print("\n".join([*lines, f"heard = {heard(engine)}"]))


def table(engines: "list[KnownEngine]", at_ms: int) -> str:
    """For people."""
    if not engines:
        return "no engine is known"
    return columns(HEAD, (_row(engine, at_ms) for engine in engines))


def _row(engine: "KnownEngine", at_ms: int) -> tuple[str, ...]:
    record, about = engine.record, engine.record.about
    sizes = [f"{name}{size}" for name, size in about.parallelism if size > 1]
    return (
        record.engine,
        record.state,
        duration((at_ms - record.updated_ms) / 1000) if record.updated_ms else "-",
        heard(engine),
        record.role,
        record.model,
        record.host or "-",
        f"{about.kind} {about.version}".strip() or "-",
        " ".join(sizes) or "-",
    )


def heard(engine: "KnownEngine") -> str:
    """Whether it is there, in words."""
    if engine.heard:
        return "yes"
    if not engine.missing:
        return "left"
    if engine.silent_ms is None:
        return "MISSING"
    return f"MISSING for {duration(engine.silent_ms / 1000)}"
