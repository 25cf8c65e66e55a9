"""`switchyard explain REQUEST`: why it went where it went, and where its time went."""

import argparse
import asyncio
from typing import TYPE_CHECKING, Final

from components.cli import found, past_source
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from schemas.past import ExplainRequest, ExplainRequestReply

ANSWER_S: Final = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request", metavar="REQUEST", help="its id: the answer's x-request-id")
    parser.add_argument("--json", action="store_true", help="as JSON on standard output")
    past_source.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from bus.errors import BusError
    from components.cli import past_view
    from schemas.past import ExplainRequest

    try:
        reply = asyncio.run(_ask(args, ExplainRequest(request_id=args.request)))
    except ValidationError as error:
        raise CommandFailed(f"{args.request!r} is no request id", 2) from error
    except BusError as error:
        raise CommandFailed(str(error)) from error
    if reply.refusal is not None:
        raise CommandFailed(reply.detail)
    print(reply.model_dump_json(indent=1) if args.json else _told(reply, past_view.explanation))
    return 0 if reply.found else 1


def _told(reply: "ExplainRequestReply", lay_out: object) -> str:
    assert callable(lay_out)
    if not reply.found:
        return f"the history has no step of {reply.request_id} (any more)"
    text: str = lay_out(reply)
    return text


async def _ask(args: argparse.Namespace, question: "ExplainRequest") -> "ExplainRequestReply":
    """From the index of a running `replay serve`; where none answers, from the stream itself."""
    from bus.errors import AskTimedOut, NoResponders
    from bus.subjects import explain_request
    from components.cli.operator_bus import operator
    from components.replay.answers import Answers
    from schemas.past import ExplainRequestReply

    if not args.bundle:
        try:
            async with operator(found.yard(args)) as bus:
                return await bus.ask(
                    explain_request(), question, ExplainRequestReply, timeout_s=ANSWER_S
                )
        except (NoResponders, AskTimedOut):
            pass
    async with past_source.source(args) as past:
        return await Answers(past).explain(question)
