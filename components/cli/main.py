"""`switchyard COMMAND`. Only the command that runs is imported, so that each starts at once."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from components.cli.errors import CommandFailed

#: Command -> (module with ``add_arguments`` and ``run``, what it does).
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("up", "start everything on this machine and keep it running"),
    "down": ("down", "end what `up` started, in order"),
    "logs": ("logs", "what the processes wrote, in the order of time"),
    "status": ("status", "who is there, how engines fare, what the bus holds"),
    "events": ("events", "what a stream recorded, and what happens now"),
    "history": ("history", "what streams hold and may hold, and whether anything is missing"),
    "explain": ("explain", "why a request went where it went, and where its time went"),
    "doctor": ("doctor", "what could keep a yard from running here, and what to do"),
    "states": ("states", "what the bridge knows of engines outside, and what it counted"),
    "send-state": ("send_state", "send a test datagram with an engine's state to the bridge"),
    "test": ("chat_once", "one short chat through a running system"),
    "engine": ("engine", "the engines there should be; pause, sleep, drain one, change its role"),
    "config": ("config", "the settings in force, and where each comes from"),
    "menu": ("menu", "the commands by number"),
    "bench": ("bench", "put load on a running system and report latencies"),
    "nodes": ("nodes", "the nodes that were declared: list, show, register, update, delete"),
    "keys": ("keys", "API keys of tenants: make, list, revoke"),
    "users": ("users", "who may log in over HTTP, and as what"),
    "plan": ("plan_links", "what a layout of engines needs, before anybody pays for it"),
    "setup": ("setup", "keys and streams for a NATS that runs elsewhere"),
    "tiny-model": ("tiny_model", "write a model of random weights for a real engine to run"),
    "join": ("join", "run one worker for an `up` that runs"),
    "gateway": ("component", "run one gateway: HTTP in, token streams out"),
    "scheduler": ("component", "run one scheduler: when each request runs"),
    "router": ("component", "run one router: where each attempt runs"),
    "registry": ("component", "run one registry: which processes and engines exist"),
    "bridge": ("component", "run one bridge: UDP engine state onto the bus"),
    "worker": ("component", "run one worker: the agent beside an engine"),
    "replay": ("replay", "the past: read it, replay it, export it; `serve` answers questions"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            return _run(arguments[0], arguments[1:])
        _overview().parse_args(arguments)
        _overview().print_help()
        return 0
    except CommandFailed as failure:
        print(f"switchyard: {failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `switchyard events ... | head`: the reader has seen enough. Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(command: str, arguments: list[str]) -> int:
    module_name, summary = COMMANDS[command]
    module = importlib.import_module(f"components.cli.{module_name}")
    parser = argparse.ArgumentParser(prog=f"switchyard {command}", description=f"{summary}.")
    parser.set_defaults(command=command)
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(arguments))
    return code


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{says}" for name, (_, says) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="switchyard",
        description="An event-driven control plane for disaggregated LLM serving, on NATS.",
        epilog=f"commands (each has --help):\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND")
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"switchyard {version('switchyard')}")
        parser.exit()
