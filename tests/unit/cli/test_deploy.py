"""What lies in deploy/ is what the code takes: settings, command lines, names of keys."""

import argparse
import importlib
import inspect
import re
import shlex
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.cli import component, main, setup
from components.cli.plan import Engines, planned
from components.cli.settings import UpSettings
from components.host.settings import HostSettings, Settings, load

DEPLOY = Path(__file__).parents[3] / "deploy"
COMPONENTS = tuple(component.FLAGS)
CONFIGURATIONS = ["local.toml", "two-gpu.toml"]


def settings_of(section: str) -> type[Settings]:
    """The settings model of a table."""
    known: dict[str, type[Settings]] = {"up": UpSettings, "host": HostSettings}
    if section in known:
        return known[section]
    module = importlib.import_module(f"components.{section}.settings")
    (model,) = [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, Settings) and found.__module__ == module.__name__
    ]
    return model


# --------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_table_of_a_configuration_fits_the_settings(name: str):
    file = DEPLOY / name
    tables = tomllib.loads(file.read_text())
    assert set(tables) <= {"up", "host", *COMPONENTS}
    for section in tables:
        load(settings_of(section), section, file, {}, {})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_asks_for_engines_that_can_serve(name: str):
    settings = load(UpSettings, "up", DEPLOY / name, {}, {})
    engines = Engines.asked_for(settings.prefill, settings.decode, settings.aggregated)
    assert planned(engines, http=("", 0), udp=("", 0), devices=settings.devices)


def test_two_gpus_are_one_for_each_worker():
    settings = load(UpSettings, "up", DEPLOY / "two-gpu.toml", {}, {})
    assert (settings.engine, settings.devices) == ("vllm", (0, 1))


# ---------------------------------------------------------------------------------------- compose


def compose() -> dict[str, Any]:
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    return found


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
RUNNING = {name: s for name, s in SERVICES.items() if "profiles" not in s and name != "streams"}


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
def test_a_container_can_do_little_and_take_little(service: dict[str, Any]):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "1000:1000"
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
def test_only_this_machine_reaches_a_container(service: dict[str, Any]):
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service.get("network_mode", "none") == "none"


@pytest.mark.parametrize("service", RUNNING.values(), ids=RUNNING.keys())
def test_whatever_keeps_running_is_looked_after(service: dict[str, Any]):
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", [n for n in SERVICES if n != "nats"])
def test_a_containers_command_line_is_one_of_ours(name: str):
    command, *words = SERVICES[name]["command"]
    module = importlib.import_module(f"components.cli.{main.COMMANDS[command][0]}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.set_defaults(command=command)
    module.add_arguments(parser)
    parser.parse_args(words)


def instances() -> dict[str, str]:
    """Instance -> component, as the containers are told."""
    found = {}
    for service in SERVICES.values():
        words = service["command"]
        if "--instance" in words:
            found[words[words.index("--instance") + 1]] = words[0]
    return found


def test_the_containers_are_the_processes_of_an_up():
    plan = planned(Engines(1, 1, 0), http=("", 0), udp=("", 0))
    assert instances() == {process.instance: process.component for process in plan}


def test_each_container_sees_its_own_key_and_no_other():
    for instance, kind in instances().items():
        (service,) = [s for s in SERVICES.values() if instance in s["command"]]
        reads_the_past = ["history.nk"] if kind == "replay" else []
        assert service["secrets"] == [f"{instance}.nk", *reads_the_past]
        assert f"/run/secrets/{instance}.nk" in service["command"]


def test_setup_makes_the_keys_and_the_configuration_that_the_containers_mount(tmp_path: Path):
    words = [w.replace("/keys", str(tmp_path)) for w in SERVICES["setup"]["command"]]
    assert main.main(words) == 0
    mounted = {Path(secret["file"]).name for secret in compose()["secrets"].values()}
    for_programs_outside = {"client-default.nk"}
    assert mounted == {file.name for file in tmp_path.iterdir()} - for_programs_outside
    config = (tmp_path / setup.SERVER_CONFIG).read_text()
    assert 'listen: "0.0.0.0:4222"' in config
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in tmp_path.glob("*.nk"))


def test_no_key_is_ever_committed():
    assert (DEPLOY / "keys" / ".gitignore").read_text().split() == ["*", "!.gitignore"]


# ------------------------------------------------------------------------------------- Dockerfiles


def instructions(name: str) -> list[str]:
    """The instructions of a Dockerfile, continued lines joined, without comments."""
    lines = [ln for ln in (DEPLOY / name).read_text().splitlines() if not ln.startswith("#")]
    return [part for part in "\n".join(lines).replace("\\\n", " ").splitlines() if part.strip()]


DOCKERFILES = ["Dockerfile.control", "Dockerfile.worker"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_package_in_an_image_has_a_hash(name: str):
    installs = [
        command
        for line in instructions(name)
        if line.startswith("RUN ")
        for command in line.removeprefix("RUN ").split("&&")
        if "pip install" in command
    ]
    assert installs
    for command in installs:
        words = shlex.split(command)
        # Our own wheel, built a line before, is the only one without.
        assert "--require-hashes" in words or {"--no-deps", "--no-index"} <= set(words)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_does_not_run_as_root_and_starts_the_console_script(name: str):
    lines = instructions(name)
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 1000:1000"]
    assert any(line.startswith('ENTRYPOINT ["switchyard"') for line in lines)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_an_image_copies_from_here_is_here_and_let_through(name: str):
    ignore = (DEPLOY.parent / ".dockerignore").read_text().split()
    copied = [
        word
        for line in instructions(name)
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    for source in copied:
        assert (DEPLOY.parent / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignore, source
