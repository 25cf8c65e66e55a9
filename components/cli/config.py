"""`switchyard config`: the settings that are in force here, and where each comes from."""

import argparse
import importlib
import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from components.cli.errors import CommandFailed
from components.cli.up import config_file

if TYPE_CHECKING:
    from components.cli.config_origin import Setting
    from components.host.settings import Settings

#: Section -> where its model is.
MODELS: Final = {
    "up": ("components.cli.settings", "UpSettings"),
    "host": ("components.host.settings", "HostSettings"),
    "gateway": ("components.gateway.settings", "GatewaySettings"),
    "scheduler": ("components.scheduler.settings", "SchedulerSettings"),
    "router": ("components.router.settings", "RouterSettings"),
    "registry": ("components.registry.settings", "RegistrySettings"),
    "bridge": ("components.bridge.settings", "BridgeSettings"),
    "replay": ("components.replay.settings", "ReplaySettings"),
    "worker": ("components.worker.settings", "WorkerSettings"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "component",
        nargs="?",
        choices=MODELS,
        metavar="COMPONENT",
        help=f"only of one: {', '.join(MODELS)}",
    )
    add("--config", type=Path, metavar="FILE", help="TOML file, as for `up` and the components")
    add("--changed", action="store_true", help="only what is not the default")
    add("--json", action="store_true", help="a list of section, name, value, origin")


def run(args: argparse.Namespace) -> int:
    config = config_file(args.config, os.environ)
    sections = [args.component] if args.component else list(MODELS)
    settings = [one for section in sections for one in settings_of(section, config)]
    if args.changed:
        settings = [one for one in settings if one.origin != "default"]
    if args.json:
        plain = [
            {"section": s.section, "name": s.name, "value": s.value, "origin": s.origin}
            for s in settings
        ]
        print(json.dumps(plain))
    else:
        print(as_text(settings))
    return 0


def settings_of(section: str, config: Path | None) -> "list[Setting]":
    """The explained settings of a section; raises ``CommandFailed`` for bad ones."""
    from components.cli.config_origin import explained
    from components.host.errors import BadSettings
    from components.host.settings import load

    module, name = MODELS[section]
    model: type[Settings] = getattr(importlib.import_module(module), name)
    try:
        settings = load(model, section, config, os.environ, {})
    except BadSettings as error:
        raise CommandFailed(str(error), error.exit_code) from error
    table = tomllib.loads(config.read_text(encoding="utf-8")).get(section, {}) if config else {}
    return explained(settings, section, table, str(config), os.environ)


def as_text(settings: "list[Setting]") -> str:
    lines: list[str] = []
    section = None
    for one in settings:
        if one.section != section:
            section = one.section
            lines.append(f"[{section}]")
        value = json.dumps(one.value, ensure_ascii=False)
        origin = "" if one.origin == "default" else f"   # {one.origin}"
        lines.append(f"  {one.name} = {value}{origin}")
    return "\n".join(lines) or "every setting is the default"
