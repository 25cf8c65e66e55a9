"""`switchyard engine ACTION NAME`: ask something of one engine while it runs, or of its record.

Exits 0 when it was done, 1 when the engine says that it was not.
"""

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Final, get_args

from components.cli import engine_list, found
from components.cli.errors import CommandFailed
from schemas.codes import EngineAction, Role

if TYPE_CHECKING:
    from schemas.engine import ControlEngine, ControlEngineReply

ACTIONS: Final[tuple[str, ...]] = tuple(a.replace("_", "-") for a in get_args(EngineAction))
#: An answer may come this long after the deadline of what was asked.
MARGIN_S: Final = 5.0
HELP: Final = """\
  list                 every engine that there is or should be (--missing: those not heard)
  show, forget         one of them, whole; remove the record of one that is not heard
  pause, resume        freeze what runs (--abort: end it), go on
  sleep, wake          give memory back (--level 1 keeps the weights on the host, 2 drops them)
  reset-prefix-cache   forget cached prompts
  drain, accept        take nothing new, take work again
  set-role             finish what runs, then be of another --role"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"actions:\n{HELP}"
    add = parser.add_argument
    choices = (*engine_list.ACTIONS, *ACTIONS)
    add("action", choices=choices, metavar="ACTION", help="what to do, see below")
    add("name", nargs="?", metavar="NAME", help="the engine's worker: prefill-0, decode-1 ...")
    add("--missing", action="store_true", help="for list: those that should be there and are not")
    add("--role", choices=get_args(Role), help="for set-role")
    add("--level", type=int, choices=(1, 2), default=1, help="for sleep (default: 1)")
    add("--abort", action="store_true", help="for pause: end what runs instead of keeping it")
    add(
        "--deadline-ms",
        type=deadline,
        default=30_000,
        metavar="N",
        help="what running work may take (default: 30000)",
    )
    add("--json", action="store_true", help="the answer as JSON")
    found.add_arguments(parser)


def deadline(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 600_000:
        raise argparse.ArgumentTypeError("0 to 600000")
    return number


def run(args: argparse.Namespace) -> int:
    if (args.action == "list") != (args.name is None):
        raise CommandFailed("list takes no NAME, and everything else takes one", 2)
    if args.action in engine_list.ACTIONS:
        return engine_list.run(args)
    reply = asyncio.run(_ask(found.yard(args), args.name, wish(args)))
    print(json.dumps(reply.model_dump(mode="json")) if args.json else sentence(reply, args.action))
    return 0 if reply.done else 1


def wish(args: argparse.Namespace) -> "ControlEngine":
    """What the command line asks for; raises ``CommandFailed`` when it does not fit together."""
    from schemas.engine import ControlEngine

    if (args.action == "set-role") != (args.role is not None):
        raise CommandFailed("set-role needs --role, and nothing else takes one", 2)
    return ControlEngine(
        action=args.action.replace("-", "_"),
        keep=not args.abort,
        level=args.level,
        role=args.role,
        deadline_ms=args.deadline_ms,
    )


def sentence(reply: "ControlEngineReply", action: str) -> str:
    stands = f"{reply.engine}: {reply.role}, {reply.activity}"
    if not reply.accepting:
        stands += ", taking nothing new"
    elif reply.activity == "running":
        stands += ", taking work"
    if not reply.done:
        return f"{action} was not done: {reply.detail or 'no reason given'}\n{stands}"
    return f"{action} done{f': {reply.detail}' if reply.detail else ''}\n{stands}"


async def _ask(yard: found.Found, name: str, control: "ControlEngine") -> "ControlEngineReply":
    from bus.errors import AskTimedOut, BusError, NoResponders
    from bus.subjects import control_engine
    from components.cli.operator_bus import operator
    from schemas.engine import ControlEngineReply

    wait_s = control.deadline_ms / 1000 + MARGIN_S
    try:
        async with operator(yard) as bus:
            return await bus.ask(
                control_engine(name), control, ControlEngineReply, timeout_s=wait_s
            )
    except NoResponders as error:
        raise CommandFailed(
            f"no engine answers as {name}; `switchyard status` lists who is there"
        ) from error
    except AskTimedOut as error:
        raise CommandFailed(
            f"{name} did not answer within {wait_s:g} s: `switchyard status` says how it fares,"
            f" `switchyard logs {name}` what it does"
        ) from error
    except BusError as error:
        raise CommandFailed(f"cannot ask at {yard.nats_url}: {error}") from error
