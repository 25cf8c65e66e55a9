"""`switchyard up`: everything on this machine, kept running until Ctrl-C."""

import argparse
import os
from pathlib import Path
from typing import Final

from components.cli.errors import CommandFailed

#: Flag -> (what it says, metavar). They become settings of the section `up`; what is not given may
#: stand in the TOML file or in the environment, so argparse has no defaults.
FLAGS: Final = {
    "--engine": ("which engine: sim (default) or vllm", "ENGINE"),
    "--model": ("name of the model; for vllm also where it lies", "M"),
    "--prefill": ("prefill engines (default 1)", "N"),
    "--decode": ("decode engines (default 1)", "N"),
    "--aggregated": ("engines that do both", "N"),
    "--profile": ("what simulated engines behave like, e.g. constant:ttft_ms=5,itl_ms=1", "P"),
    "--speed": ("how much faster than real time simulated engines run", "X"),
    "--host": ("address to listen on (default 127.0.0.1)", "H"),
    "--port": ("HTTP port (default 8000; 0: any free one)", "P"),
    "--udp-port": ("port for engine state (default 9999; 0: any free one)", "P"),
    "--data": ("folder for history, keys, logs (default: the user's state folder)", "DIR"),
    "--nats": ("use the NATS there instead of a server of our own", "URL"),
    "--keys": ("folder of nkey seeds (default: DIR/keys)", "DIR"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, (says, metavar) in FLAGS.items():
        parser.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=says)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML with [up], [host] and a table per component",
    )


def run(args: argparse.Namespace) -> int:
    import asyncio

    from components.cli.plan import BadPlan
    from components.cli.progress import progress
    from components.cli.rundir import RunDir, default_data_dir
    from components.cli.settings import UpSettings
    from components.cli.yard import Yard
    from components.host.errors import BadSettings
    from components.host.settings import ENV_CONFIG, HostSettings, load

    config = args.config or (Path(os.environ[ENV_CONFIG]) if ENV_CONFIG in os.environ else None)
    flags = {k: v for k, v in vars(args).items() if k not in {"command", "config"}}
    try:
        settings = load(UpSettings, "up", config, os.environ, flags)
        host_settings = load(HostSettings, "host", config, os.environ, {})
    except BadSettings as error:
        raise CommandFailed(str(error), error.exit_code) from error
    run_dir = RunDir(settings.data or default_data_dir(os.environ, Path.home()))
    with progress() as shown, run_dir.locked():
        try:
            yard = Yard(settings, host_settings, config and config.absolute(), run_dir, shown)
        except BadPlan as error:
            raise CommandFailed(str(error), 2) from error
        return asyncio.run(yard.live())
