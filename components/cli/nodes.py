"""`switchyard nodes`: the nodes that somebody declared.

switchyard nodes list [--status online]         all, by the order of their ids
switchyard nodes show ID                        one, whole
switchyard nodes register ID --field K=V ...    written anew; what is not said has its default
switchyard nodes update ID --field K=V ...      what is said is set, all else stays
switchyard nodes drain ID                       the same as update with state=DRAINING
switchyard nodes delete ID
"""

import argparse
import asyncio
from typing import TYPE_CHECKING, Any, Final

from components.cli import found
from components.cli.columns import columns
from components.cli.component import assignment
from components.cli.errors import CommandFailed
from components.cli.send_state import value_of

if TYPE_CHECKING:
    from bus.bus import Bus
    from schemas.message import Message
    from schemas.nodes import Node

ANSWER_S: Final = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    what = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    listing = what.add_parser("list", help="all nodes")
    listing.add_argument("--status", choices=("online", "offline"))
    for name in ("show", "register", "update", "drain", "delete"):
        command = what.add_parser(name)
        command.add_argument("node", metavar="ID")
        if name in {"register", "update"}:
            command.add_argument(
                "--field",
                action="append",
                default=[],
                type=assignment,
                metavar="KEY=VALUE",
                help="a field of the node; values are JSON where they read as such; repeatable",
            )
        if name in {"update", "drain", "delete"}:
            command.add_argument(
                "--revision", type=int, default=0, help="only if the record still has it"
            )
    for command in what.choices.values():
        command.add_argument("--json", action="store_true")
        found.add_arguments(command)


def run(args: argparse.Namespace) -> int:
    from bus.errors import BusError, NoResponders

    try:
        nodes = asyncio.run(_ask(args))
    except NoResponders as error:
        raise CommandFailed("no registry answers; see: switchyard status") from error
    except BusError as error:
        raise CommandFailed(str(error)) from error
    if args.json:
        import json

        plain = [node.model_dump() for node in nodes]
        print(json.dumps(plain if args.what == "list" else plain[0], indent=1))
    elif args.what in {"list", "delete"}:
        print(table(nodes))
    else:
        print("\n".join(f"{name} = {value}" for name, value in nodes[0]))
    return 0


def table(nodes: "list[Node]") -> str:
    """For people."""
    if not nodes:
        return "no node is declared"
    rows = (
        (
            n.node_id,
            n.node_status,
            n.state,
            n.role,
            f"{n.node_address}:{n.node_port}",
            n.served_model_name or "-",
            {None: "-", True: "yes", False: "no"}[n.healthy],
            str(n.revision),
        )
        for n in nodes
    )
    head = ("NODE", "STATUS", "STATE", "ROLE", "ADDRESS", "MODEL", "HEALTHY", "REVISION")
    return columns(head, rows)


async def _ask(args: argparse.Namespace) -> "list[Node]":
    from components.cli.operator_bus import operator

    async with operator(found.yard(args)) as bus:
        if args.what == "list":
            return await _all(bus, args.status)
        return [await _one(bus, args)]


async def _all(bus: "Bus", status: Any) -> "list[Node]":
    from bus.paging import read_pages
    from bus.subjects import list_nodes
    from schemas.nodes import ListNodes, ListNodesReply

    async def ask(after: str) -> ListNodesReply:
        asked = ListNodes(after=after, status=status)
        reply = await bus.ask(list_nodes(), asked, ListNodesReply, timeout_s=ANSWER_S)
        if reply.refusal is not None:
            raise CommandFailed(reply.detail)
        return reply

    pages = await read_pages(ask, lambda page: [node.node_id for node in page.nodes])
    return [node for page in pages for node in page.nodes]


async def _one(bus: "Bus", args: argparse.Namespace) -> "Node":
    from pydantic import ValidationError

    from bus import subjects
    from schemas import nodes as n

    try:
        question, reply = _question(args)
    except ValidationError as error:
        first = error.errors()[0]
        raise CommandFailed(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 2) from error
    subject = subjects.function_of(type(question))()
    answer: Any = await bus.ask(subject, question, reply, timeout_s=ANSWER_S)
    if answer.refusal is not None:
        raise CommandFailed(answer.detail)
    node: n.Node = answer.node
    return node


def _question(args: argparse.Namespace) -> "tuple[Message, type[Message]]":
    from schemas import nodes as n

    caller = {"name": "operator", "roles": ("admin",)}
    fields = {key: value_of(text) for key, text in getattr(args, "field", [])}
    match args.what:
        case "show":
            return n.ShowNode(node_id=args.node), n.ShowNodeReply
        case "register":
            values = {"caller": caller, "node_id": args.node, "changes": fields}
            return n.RegisterNode.model_validate(values), n.RegisterNodeReply
        case "delete":
            values = {"caller": caller, "node_id": args.node, "revision": args.revision}
            return n.DeleteNode.model_validate(values), n.DeleteNodeReply
        case _:
            changes = {"state": "DRAINING"} if args.what == "drain" else fields
            values = {
                "caller": caller,
                "node_id": args.node,
                "changes": changes,
                "revision": args.revision,
            }
            return n.UpdateNode.model_validate(values), n.UpdateNodeReply
