"""deploy/MIGRATION.md names only what there is, and what it calls heard is."""

import re
from pathlib import Path

import pytest

from components.bridge.settings import BridgeSettings
from components.cli.main import COMMANDS
from components.cli.settings import UpSettings
from components.host.settings import Settings, load
from components.router.settings import RouterSettings
from components.worker.settings import WorkerSettings
from components.worker.vllm.connector.config import ConnectorConfig

TEXT = (Path(__file__).parents[3] / "deploy" / "MIGRATION.md").read_text()
SECTIONS: dict[str, type[Settings]] = {
    "up": UpSettings,
    "bridge": BridgeSettings,
    "worker": WorkerSettings,
    "router": RouterSettings,
}
HEARD = re.findall(r"^\| (.*?) \| heard", TEXT, re.MULTILINE)


def test_every_command_of_the_table_is_one():
    named = re.findall(r"`switchyard ([a-z-]+)", TEXT)
    assert len(named) > 15
    assert set(named) <= set(COMMANDS)


def test_every_setting_of_the_table_is_one():
    named = re.findall(r"`(up|worker|router)\.([a-z_]+)(?:\.([a-z_0-9]+))?", TEXT)
    assert len(named) > 6
    for section, field, inner in named:
        settings = SECTIONS[section]
        assert field in settings.model_fields, f"{section}.{field}"
        if inner:
            table = settings.model_fields[field].default
            assert inner in type(table).model_fields, f"{section}.{field}.{inner}"
    for name in ("staging_bytes", "host_staging_bytes"):
        assert name in ConnectorConfig.__dataclass_fields__


def test_every_variable_of_ours_is_one():
    named = re.findall(r"SWITCHYARD_(UP|BRIDGE)_([A-Z_]+)", TEXT)
    assert named
    for section, field in named:
        assert field.lower() in SECTIONS[section.lower()].model_fields


def test_every_variable_that_is_called_heard_is():
    named = {name for cell in HEARD for name in re.findall(r"`([A-Z_]+)`", cell)}
    assert {"MODEL", "PREFILL_GPU", "PREFILL_ADDRS", "VLLM_STATE_GATEWAY_UDP_PORT"} <= named
    assert named <= {*UpSettings.env_aliases, *BridgeSettings.env_aliases}


@pytest.mark.parametrize(
    ("variable", "value", "field", "found"),
    [
        ("MODEL", "/models/m", "model", "/models/m"),
        ("PREFILL_GPU", "2", "prefill_gpus", (2,)),
        ("DECODE_GPU", "3,4", "decode_gpus", (3, 4)),
        ("HTTP_PROXY_PORT", "10001", "port", 10001),
        ("PROXY_PORT", "30001", "ping_port", 30001),
        ("DECODE_ADDRS", "a:1,b:2", "decode_addrs", ("a:1", "b:2")),
        ("TIMEOUT_SECONDS", "60", "start_timeout_s", 60.0),
    ],
)
def test_the_script_s_variables_are_heard(variable, value, field, found):
    assert getattr(load(UpSettings, "up", None, {variable: value}, {}), field) == found
