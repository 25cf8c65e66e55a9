"""`switchyard history`: what streams hold and may hold, and whether anything is missing."""

import argparse
import asyncio
from typing import TYPE_CHECKING, Final

from components.cli import found, instants
from components.cli.columns import columns
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from schemas.history import HistoryGapFound, HistoryTailLost, ShowHistoryReply, StreamNow

ANSWER_S: Final = 10.0
DAY_S: Final = 86_400
MIB: Final = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as the auditor answers")
    found.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 1 when the history is not ok."""
    reply = asyncio.run(_ask(found.yard(args)))
    print(reply.model_dump_json(indent=1) if args.json else page(reply))
    return 0 if reply.state == "ok" else 1


async def _ask(yard: found.Found) -> "ShowHistoryReply":
    from bus.errors import BusError, NoResponders
    from bus.subjects import show_history
    from components.cli.operator_bus import operator
    from schemas.history import ShowHistory, ShowHistoryReply

    try:
        async with operator(yard) as bus:
            return await bus.ask(
                show_history(), ShowHistory(), ShowHistoryReply, timeout_s=ANSWER_S
            )
    except NoResponders as error:
        raise CommandFailed(
            "nobody audits the history; does `switchyard replay serve` run? See: switchyard status"
        ) from error
    except BusError as error:
        raise CommandFailed(str(error)) from error


def page(reply: "ShowHistoryReply") -> str:
    """For people."""
    head = f"the history is {reply.state}" + (f": {reply.why}" if reply.why else "")
    parts = [head, columns(_HEAD, map(_row, reply.streams))]
    told = f"{reply.gaps_total} gaps since the auditor started"
    if reply.waiting:
        told += f", {reply.waiting} events may still come"
    parts.append(told)
    if reply.gaps:
        parts.append(columns(_GAPS, map(_gap, reply.gaps)))
    if reply.tails:
        parts.append(
            "ended while nothing was stored; what they said from then on may be missing in part:"
        )
        parts.append(columns(_TAILS, map(_tail, reply.tails)))
    return "\n\n".join(parts)


_HEAD: Final = ("STREAM", "MESSAGES", "SIZE", "OF", "KEPT FOR", "FROM", "TO", "AUDITED TO")
_GAPS: Final = ("STREAM", "EVENT", "SOURCE", "MISSING", "")
_TAILS: Final = ("SOURCE", "SINCE")


def _row(stream: "StreamNow") -> tuple[str, ...]:
    return (
        stream.name,
        str(stream.messages),
        f"{stream.bytes / MIB:.1f} MiB",
        f"{stream.bytes_max / MIB:.0f} MiB",
        f"{stream.age_max_s / DAY_S:g} d",
        str(stream.first_seq),
        str(stream.last_seq),
        str(stream.audited_seq),
    )


def _tail(tail: "HistoryTailLost") -> tuple[str, str]:
    return tail.source, instants.show(tail.since_ms)


def _gap(gap: "HistoryGapFound") -> tuple[str, ...]:
    one = gap.first_seq == gap.last_seq
    span = str(gap.first_seq) if one else f"{gap.first_seq} to {gap.last_seq}"
    return gap.stream, gap.event, gap.source, span, "came late" if gap.filled else ""
