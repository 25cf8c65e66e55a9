"""`switchyard states`: what the bridge knows of engines outside, and what it counted."""

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Final

from components.cli import found
from components.cli.columns import columns
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from bus.bus import Bus
    from schemas.engine import EngineStateReceived, EngineStateSeen, ShowStatesReply

ANSWER_S: Final = 2.0
BRIDGE: Final = "bridge-0"
HISTORY_MAX: Final = 100
HEAD: Final = (
    "ENGINE", "AGE", "MODE", "LATENCY", "PENDING", "KV FREE", "CAPACITY", "CLOCK", "FROM",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("engine", nargs="?", metavar="ENGINE", help="only of this engine id, with its history")
    add("--history", type=int, default=10, metavar="N", help="how many states of it, up to 100")
    add("--bridge", default=BRIDGE, metavar="NAME", help="default: %(default)s")
    add("--json", action="store_true", help="as the bridge answers")
    found.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.history <= HISTORY_MAX:
        raise CommandFailed(f"--history is a number from 0 to {HISTORY_MAX}", 2)
    reply = asyncio.run(_ask(found.yard(args), args))
    if args.engine and not reply.engines:
        raise CommandFailed(f"{args.bridge} has heard of no engine {args.engine!r}")
    print(json.dumps(reply.model_dump(mode="json")) if args.json else page(reply))
    return 0


async def _ask(yard: found.Found, args: argparse.Namespace) -> "ShowStatesReply":
    from bus.errors import AskTimedOut, BusError, NoResponders
    from components.cli.operator_bus import operator

    try:
        async with operator(yard) as bus:
            return await _whole(bus, args)
    except NoResponders as error:
        raise CommandFailed(
            f"no bridge answers as {args.bridge}; see: switchyard status"
        ) from error
    except AskTimedOut as error:
        raise CommandFailed(f"{args.bridge} did not answer within {ANSWER_S:g} s") from error
    except BusError as error:
        raise CommandFailed(str(error)) from error


async def _whole(bus: "Bus", args: argparse.Namespace) -> "ShowStatesReply":
    """All engines in one reply, with the sums of the last one."""
    from bus.paging import read_pages
    from bus.subjects import show_states
    from schemas.engine import ShowStates, ShowStatesReply

    history = args.history if args.engine else 0

    async def ask(after: str) -> ShowStatesReply:
        asked = ShowStates(engine_id=args.engine, history=history, after=after)
        return await bus.ask(show_states(args.bridge), asked, ShowStatesReply, timeout_s=ANSWER_S)

    pages = await read_pages(ask, lambda page: [seen.state.engine_id for seen in page.engines])
    engines = tuple(seen for page in pages for seen in page.engines)
    return pages[-1].model_copy(update={"engines": engines})


def page(reply: "ShowStatesReply") -> str:
    """For people: engines, the history of one, and the sums of all."""
    parts = ["no engine outside was heard of"]
    if reply.engines:
        rows = (_row(seen.state, _age(seen), _clock(seen)) for seen in reply.engines)
        parts = [columns(HEAD, rows)]
    if reply.history:
        rows = ((str(s.timestamp_ms), *_figures(s), s.source_address) for s in reply.history)
        parts.append(columns(("SENT (ms)", *HEAD[2:7], "FROM"), rows))
    totals = reply.totals
    parts.append(
        f"{totals.get('received_total', 0)} datagrams, {reply.valid_rate} valid, "
        f"{totals.get('reordered_total', 0)} out of order, "
        f"{totals.get('duplicates_total', 0)} twice, {totals.get('rate_limited_total', 0)} too many"
    )
    return "\n\n".join(parts)


def _age(seen: "EngineStateSeen") -> str:
    return f"{seen.age_ms} ms" + (" stale" if seen.stale else "")


def _clock(seen: "EngineStateSeen") -> str:
    return f"{seen.clock_ahead_ms:+d} ms"


def _row(state: "EngineStateReceived", age: str, clock: str) -> tuple[str, ...]:
    return (state.engine_id, age, *_figures(state), clock, state.source_address)


def _figures(state: "EngineStateReceived") -> tuple[str, ...]:
    blocks = f"{state.kv_cache_free_blocks}/{state.kv_cache_total_blocks}"
    return (
        state.scheduling_mode,
        f"{state.latency_pred_ms:.1f} ms",
        str(state.pending_tokens_total),
        "unknown" if state.kv_cache_total_blocks < 0 else blocks,
        f"{state.engine_capacity:.0f}/s",
    )
