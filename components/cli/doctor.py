"""`switchyard doctor`: what could keep a yard from running here, and what to do about it.

Exits 1 when something is wrong; warnings and what was skipped do not count.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from components.cli import found
from components.cli.errors import CommandFailed
from components.cli.up import config_file

if TYPE_CHECKING:
    from components.cli.doctor_checks import Verdict
    from components.cli.rundir import RunDir
    from components.cli.settings import UpSettings

MARKS: Final = {"ok": "ok  ", "warn": "WARN", "bad": "BAD ", "skip": "-   "}


@dataclass(frozen=True, slots=True)
class Setup:
    """What an `up` would be told here, and the folder it would use."""

    up: "UpSettings"
    folder: "RunDir"
    engine: str
    model: str
    gpus_wanted: int
    receive_buffer_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="TOML file, as for `up`")
    for flag, says in (
        ("--engine", "sim or vllm: what `up` is to run"),
        ("--model", "the model's directory or name"),
        ("--port", "HTTP port"),
        ("--udp-port", "port for engine state"),
    ):
        add(flag, default=argparse.SUPPRESS, help=says)
    add("--json", action="store_true", help="a list of check, grade, says, next_step")
    found.add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    from components.cli.doctor_checks import failed

    verdicts = examine(setup(args))
    if args.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts]))
    else:
        print(as_text(verdicts))
    return 1 if failed(verdicts) else 0


def setup(args: argparse.Namespace) -> Setup:
    """Raises ``CommandFailed`` for settings that nothing could run with."""
    from components.bridge.settings import BridgeSettings
    from components.cli.engine_options import engine_args, engine_of, fleet_of
    from components.cli.plan import BadPlan
    from components.cli.rundir import RunDir, default_data_dir
    from components.cli.settings import UpSettings
    from components.host.errors import BadSettings
    from components.host.settings import load
    from components.worker.settings import WorkerSettings

    config = config_file(args.config, os.environ)
    others = {"command", "config", "json", "data"}
    flags = {key: value for key, value in vars(args).items() if key not in others}
    try:
        up = load(UpSettings, "up", config, os.environ, flags)
        bridge = load(BridgeSettings, "bridge", config, os.environ, {})
        worker = load(WorkerSettings, "worker", config, os.environ, {})
        fleet = fleet_of(up, engine_args(up, config, os.environ))
        engine = engine_of(up) or worker.engine
    except BadSettings as error:
        raise CommandFailed(str(error), error.exit_code) from error
    except BadPlan as error:
        raise CommandFailed(str(error), 2) from error
    return Setup(
        up,
        RunDir(args.data or up.data or default_data_dir(os.environ, Path.home())),
        engine,
        worker.model_source or up.model or worker.model,
        len(set(fleet.devices)),
        bridge.receive_buffer_bytes,
    )


def examine(here: Setup) -> "list[Verdict]":
    """Every check, from the machine to the engine."""
    from components.cli import doctor_checks as checks

    # Without these nothing else can be looked at.
    ground = [checks.python(sys.version_info[:2]), checks.packages(_missing())]
    if checks.failed(ground):
        return ground
    return [*ground, *_machine(here), *_yard(here), *_engine(here)]


def _missing() -> dict[str, str]:
    try:
        from components.cli.doctor_probes import missing_modules
    except ImportError as error:
        return {error.name or "?": str(error)}
    return missing_modules()


def _machine(here: Setup) -> "list[Verdict]":
    from components.cli import doctor_checks as checks
    from components.cli import doctor_probes as probes

    page = here.folder.read()
    http = page is not None and page.url.endswith(f":{here.up.port}")
    udp = page is not None and page.udp.endswith(f":{here.up.udp_port}")
    return [
        checks.nats_binary(*probes.nats_binary()),
        checks.port(probes.port(here.up.host, here.up.port, socket.SOCK_STREAM, ours=http)),
        checks.port(probes.port(here.up.host, here.up.udp_port, socket.SOCK_DGRAM, ours=udp)),
        checks.data_folder(str(here.folder.path), *probes.data_folder(here.folder.path)),
        checks.open_files(*probes.open_files()),
        checks.receive_buffer(probes.rmem_max(), here.receive_buffer_bytes),
    ]


def _yard(here: Setup) -> "list[Verdict]":
    from components.cli import doctor_checks as checks
    from components.cli import doctor_probes as probes

    fact = None
    if page := here.folder.read():
        keys = Path(page.keys_dir) if page.keys_dir else None
        where = found.Found(page.nats_url, keys, page.subject_prefix, page)
        fact = asyncio.run(probes.yard(where))
    return checks.yard(fact, str(here.folder.path))


def _engine(here: Setup) -> "list[Verdict]":
    from components.cli import doctor_checks as checks
    from components.cli import doctor_probes as probes

    wanted = here.engine == "vllm"
    verdicts = checks.engine(probes.engine(wanted=wanted, gpus_wanted=here.gpus_wanted))
    if wanted:
        verdicts.append(checks.model(here.model, *probes.model_files(here.model)))
    return verdicts


def as_text(verdicts: "list[Verdict]") -> str:
    width = max(len(verdict.check) for verdict in verdicts)
    lines: list[str] = []
    for verdict in verdicts:
        lines.append(f"{MARKS[verdict.grade]} {verdict.check:<{width}}  {verdict.says}")
        if verdict.next_step:
            lines.append(f"     {'':<{width}}  -> {verdict.next_step}")
    return "\n".join(lines)
