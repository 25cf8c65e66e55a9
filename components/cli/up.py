"""`switchyard up`: everything on this machine, kept running until Ctrl-C."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from components.cli.component import add_engine_args
from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from components.cli.settings import UpSettings

#: Flag -> (what it says, metavar). They become settings of the section `up`; what is not given may
#: stand in the TOML file or in the environment, so argparse has no defaults.
FLAGS: Final = {
    "--engine": ("which engine: sim (default), vllm, or openai (elsewhere)", "ENGINE"),
    "--model": ("name of the model; for vllm also where it lies", "M"),
    "--prefill": ("prefill engines (default 1)", "N"),
    "--decode": ("decode engines (default 1)", "N"),
    "--aggregated": ("engines that do both", "N"),
    "--profile": ("what simulated engines behave like, e.g. constant:ttft_ms=5,itl_ms=1", "P"),
    "--speed": ("how much faster than real time simulated engines run", "X"),
    "--tp": ("GPUs per vLLM engine (tensor parallel)", "N"),
    "--devices": ("GPUs for the engines in turn, prefill first: 0,1", "G,G"),
    "--prefill-gpus": ("GPUs of the prefill engines; with --decode-gpus", "G,G"),
    "--decode-gpus": ("GPUs of the decode engines", "G,G"),
    "--prefill-addrs": ("prefill engines elsewhere that speak OpenAI's API", "H:P,H:P"),
    "--decode-addrs": ("decode engines elsewhere", "H:P,H:P"),
    "--aggregated-addrs": ("engines elsewhere that do both", "H:P,H:P"),
    "--host": ("address to listen on (default 127.0.0.1)", "H"),
    "--port": ("HTTP port (default 8000; 0: any free one)", "P"),
    "--udp-port": ("port for engine state (default 9999; 0: any free one)", "P"),
    "--ping-port": ("port where vLLM engines elsewhere register themselves", "P"),
    "--data": ("folder for history, keys, logs (default: the user's state folder)", "DIR"),
    "--nats": ("use the NATS there instead of a server of our own", "URL"),
    "--keys": ("folder of nkey seeds (default: DIR/keys)", "DIR"),
}
TIMEOUT: Final = "start_timeout_s"
EPILOG: Final = """\
From the environment, below flags and SWITCHYARD_UP_*: MODEL, PREFILL_GPU, DECODE_GPU (lists: 0,1),
HTTP_PROXY_PORT, PROXY_PORT, PREFILL_ADDRS, DECODE_ADDRS, TIMEOUT_SECONDS (deploy/MIGRATION.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    for flag, (says, metavar) in FLAGS.items():
        parser.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=says)
    parser.add_argument(
        "--start-timeout",
        dest=TIMEOUT,
        default=argparse.SUPPRESS,
        metavar="S",
        help="give up when no request can be served by then (default 600)",
    )
    parser.add_argument(
        "--no-workers",
        dest="workers",
        action="store_const",
        const="false",
        default=argparse.SUPPRESS,
        help="the control plane and keys for the workers, which join by themselves",
    )
    parser.add_argument(
        "--detach", action="store_true", help="run in the background; return when it is ready"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML with [up], [host] and a table per component",
    )
    add_engine_args(parser)


def overrides(args: argparse.Namespace) -> dict[str, object]:
    """What the command line says about the settings of section `up`."""
    others = {"command", "config", "detach", "engine_arguments"}
    flags = {key: value for key, value in vars(args).items() if key not in others}
    arguments = {key: value_of(text) for key, text in args.engine_arguments}
    return {**flags, "engine_args": arguments} if arguments else flags


def words(args: argparse.Namespace) -> list[str]:
    """The same command line again, in the foreground."""
    given = vars(args)
    dests = {**{flag: flag[2:].replace("-", "_") for flag in FLAGS}, "--start-timeout": TIMEOUT}
    said = [(flag, given[dest]) for flag, dest in dests.items() if dest in given]
    said += [("--config", args.config)] if args.config else []
    said += [("--engine-args", f"{key}={text}") for key, text in args.engine_arguments]
    more = ["--no-workers"] if "workers" in given else []
    # With an equals sign, so that a value may begin with a dash.
    return [*(f"{flag}={value}" for flag, value in said), *more]


def value_of(text: str) -> Any:
    """A JSON value when it reads as one, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def config_file(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The TOML file that the flag or the environment names."""
    from components.host.settings import ENV_CONFIG

    named = given or (Path(environ[ENV_CONFIG]) if environ.get(ENV_CONFIG) else None)
    return named and named.absolute()


def see_who_may_log_in(
    settings: "UpSettings", config: Path | None, environ: Mapping[str, str]
) -> None:
    """Raises ``BadSettings`` where anybody could log in by name from another machine."""
    from components.domain.addresses import is_loopback
    from components.host.errors import BadSettings
    from components.host.settings import load
    from components.registry.settings import RegistrySettings

    registry = load(RegistrySettings, "registry", config, environ, {})
    if registry.insecure_username_login and not is_loopback(settings.host):
        raise BadSettings(
            "registry.insecure_username_login lets anybody log in by name alone, and gateway.host"
            f" (up.host, --host) is {settings.host}, where other machines ask too:"
            " unset the one, or listen on 127.0.0.1"
        )


def run(args: argparse.Namespace) -> int:
    from components.cli.rundir import RunDir, default_data_dir
    from components.cli.settings import UpSettings
    from components.host.errors import BadSettings
    from components.host.settings import load

    config = config_file(args.config, os.environ)
    try:
        settings = load(UpSettings, "up", config, os.environ, overrides(args))
        see_who_may_log_in(settings, config, os.environ)
    except BadSettings as error:
        raise CommandFailed(str(error), error.exit_code) from error
    run_dir = RunDir(settings.data or default_data_dir(os.environ, Path.home()))
    if args.detach:
        from components.cli.detach import start

        return start(words(args), run_dir, settings.start_timeout_s)
    return _run_here(settings, config, run_dir)


def _run_here(settings: "UpSettings", config: Path | None, run_dir: Any) -> int:
    import asyncio

    from components.cli.plan import BadPlan
    from components.cli.progress import progress
    from components.cli.yard import Yard
    from components.host.errors import BadSettings
    from components.host.settings import HostSettings, load

    with progress() as shown, run_dir.locked():
        try:
            host_settings = load(HostSettings, "host", config, os.environ, {})
            yard = Yard(settings, host_settings, config, run_dir, shown)
        except BadPlan as error:
            raise CommandFailed(str(error), 2) from error
        except BadSettings as error:
            raise CommandFailed(str(error), error.exit_code) from error
        return asyncio.run(yard.live())
