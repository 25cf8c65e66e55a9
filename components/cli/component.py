"""`switchyard COMPONENT`: one process of the fleet, in the foreground, until it is told to stop."""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Overrides = dict[str, object]
NOT_SETTINGS: Final = {"command", "what", "assignments", "engine_arguments"}


@dataclass(frozen=True, slots=True)
class Flag:
    """A shorter way to say `--set setting=value`."""

    name: str
    setting: str
    help: str
    type: Callable[[str], Any] = str


HOST_FLAGS: Final = (
    Flag("--config", "config", "TOML file with a table per component and [host]"),
    Flag("--nats", "host.nats_url", "where the nats-server is: nats://HOST:PORT"),
    Flag("--key-file", "host.nats_key_file", "nkey seed of this process, mode 0600"),
    Flag("--instance", "host.instance", "name of this process; its key is made for this name"),
    Flag("--drain-s", "host.drain_s", "seconds that running work may take after SIGTERM", float),
)

FLAGS: Final[dict[str, tuple[Flag, ...]]] = {
    "gateway": (
        Flag("--host", "host", "address to listen on for HTTP"),
        Flag("--port", "port", "port to listen on for HTTP", int),
    ),
    "bridge": (
        Flag("--host", "bind_address", "address to listen on for datagrams"),
        Flag("--udp-port", "udp_port", "port to listen on for datagrams", int),
    ),
    "worker": (
        Flag("--role", "role", "prefill, decode or aggregated"),
        Flag("--model", "model", "name of the model"),
        Flag("--engine", "engine", "sim, vllm, openai or sglang"),
        Flag("--url", "url", "openai: where the server is, http://HOST:PORT"),
        Flag("--profile", "profile", "how fast the simulated engine is"),
        Flag("--speed", "speed", "how much faster than real time it runs", float),
        Flag("--prefill-urls", "prefill_urls", "SGLang: 'URL [BOOTSTRAP_PORT]', comma-separated"),
        Flag("--decode-urls", "decode_urls", "SGLang: URLs of decode servers, comma-separated"),
    ),
    "scheduler": (),
    "router": (),
    "registry": (),
    "replay": (
        Flag("--history-key-file", "history_key_file", "nkey seed that lets it read streams"),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command: str = parser.get_default("command")
    for flag in (*FLAGS[command], *HOST_FLAGS):
        parser.add_argument(
            flag.name,
            dest=flag.setting,
            type=flag.type,
            default=argparse.SUPPRESS,
            metavar=flag.name.removeprefix("--").replace("-", "_").upper(),
            help=flag.help,
        )
    if command == "worker":
        add_engine_args(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        type=assignment,
        help="any other setting of this component, or host.KEY for what all share; repeatable",
    )


def add_engine_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine-args",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        dest="engine_arguments",
        type=assignment,
        help="arguments of vLLM's engine by their names, e.g. max_model_len=8192; values are JSON"
        " where they read as such",
    )


def assignment(text: str) -> tuple[str, str]:
    """``key=value`` as a pair; the settings model reads numbers and flags from the text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def overrides(args: argparse.Namespace) -> Overrides:
    """What the command line says about settings; a later ``--set`` wins over everything."""
    flags = {key: value for key, value in vars(args).items() if key not in NOT_SETTINGS}
    engine = getattr(args, "engine_arguments", [])
    return {
        **flags,
        **{f"engine_args.{key}": value for key, value in engine},
        **dict(args.assignments),
    }


def run(args: argparse.Namespace) -> int:
    main: Callable[[Overrides], int] = importlib.import_module(
        f"components.{args.command}.main"
    ).main
    return main(overrides(args))
