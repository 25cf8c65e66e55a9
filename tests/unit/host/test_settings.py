from pathlib import Path
from typing import Literal

import pytest

from components.host.errors import BadSettings
from components.host.settings import HostSettings, Settings, load, load_process


class Yard(Settings):
    port: int = 8000
    mode: Literal["calm", "wild"] = "calm"
    models: tuple[str, ...] = ()
    limits: dict[str, int] = {}  # noqa: RUF012  (pydantic copies it)
    on: bool = False
    key: str = ""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "switchyard.toml"
    path.write_text('[yard]\nport = 1\nmodels = ["a"]\n[host]\nheartbeat_ms = 100\n')
    return path


def test_the_command_line_wins_over_the_environment_which_wins_over_the_file(toml: Path):
    environ = {"SWITCHYARD_YARD_PORT": "2", "SWITCHYARD_YARD_ON": "true"}
    assert load(Yard, "yard", None, {}, {}).port == 8000
    assert load(Yard, "yard", toml, {}, {}) == Yard(port=1, models=("a",))
    assert load(Yard, "yard", toml, environ, {}) == Yard(port=2, models=("a",), on=True)
    assert load(Yard, "yard", toml, environ, {"port": 3}).port == 3


def test_several_values_are_read_from_the_environment_as_json_or_with_commas():
    def models(text: str) -> tuple[str, ...]:
        return load(Yard, "yard", None, {"SWITCHYARD_YARD_MODELS": text}, {}).models

    assert models("a, b/c") == ("a", "b/c")
    assert models('["a,b"]') == ("a,b",)
    environ = {"SWITCHYARD_YARD_LIMITS": '{"x": 1}'}
    assert load(Yard, "yard", None, environ, {}).limits == {"x": 1}
    assert load(Yard, "yard", None, {}, {"models": "a,b"}).models == ("a", "b")
    with pytest.raises(BadSettings, match="SWITCHYARD_YARD_MODELS is not JSON"):
        models("[a")


@pytest.mark.parametrize("where", ["file", "environment", "command line"])
def test_an_unknown_key_is_an_error_that_names_it_its_origin_and_the_allowed_ones(
    tmp_path: Path, where: str
):
    toml = tmp_path / "s.toml"
    toml.write_text("[yard]\nprot = 1\n" if where == "file" else "")
    environ = {"SWITCHYARD_YARD_PROT": "1"} if where == "environment" else {}
    overrides = {"prot": 1} if where == "command line" else {}
    with pytest.raises(BadSettings) as caught:
        load(Yard, "yard", toml, environ, overrides)
    told = str(caught.value)
    assert "unknown settings for yard: 'prot'" in told
    assert "Allowed: key, limits, mode, models, on, port" in told
    origin = {"file": str(toml), "environment": "SWITCHYARD_YARD_PROT", "command line": where}
    assert origin[where] in told


def test_a_bad_value_is_told_by_its_name_and_origin_but_is_not_repeated():
    environ = {"SWITCHYARD_YARD_PORT": "s3cret"}
    with pytest.raises(BadSettings, match=r"yard\.port \(from SWITCHYARD_YARD_PORT\)") as caught:
        load(Yard, "yard", None, environ, {})
    assert "s3cret" not in str(caught.value)
    with pytest.raises(BadSettings, match=r"yard\.mode .*'calm' or 'wild'"):
        load(Yard, "yard", None, {}, {"mode": "odd"})


@pytest.mark.parametrize("text", ["[yard", "yard = 1"])
def test_a_file_that_is_not_as_expected_is_named(tmp_path: Path, text: str):
    toml = tmp_path / "s.toml"
    toml.write_text(text)
    with pytest.raises(BadSettings, match=r"s\.toml"):
        load(Yard, "yard", toml, {}, {})
    with pytest.raises(BadSettings, match="absent"):
        load(Yard, "yard", tmp_path / "absent.toml", {}, {})


def test_nats_url_is_heard_and_our_own_variable_wins():
    foreign = {"NATS_URL": "nats://foreign:1"}
    ours = {"SWITCHYARD_HOST_NATS_URL": "nats://ours:2"}
    assert load(HostSettings, "host", None, foreign, {}).nats_url == "nats://foreign:1"
    assert load(HostSettings, "host", None, foreign | ours, {}).nats_url == "nats://ours:2"


def test_a_process_reads_two_sections_and_gets_a_name(toml: Path):
    host, yard = load_process("yard", Yard, {"config": toml, "host.drain_s": 1.5, "port": 9}, {})
    assert (host.heartbeat_ms, host.drain_s, host.instance) == (100, 1.5, "yard-0")
    assert (yard.port, yard.models) == (9, ("a",))
    environ = {"SWITCHYARD_CONFIG": str(toml), "SWITCHYARD_HOST_INSTANCE": "yard-7"}
    host, yard = load_process("yard", Yard, {}, environ)
    assert (host.instance, yard.port) == ("yard-7", 1)


def test_an_instance_is_one_plain_subject_token():
    with pytest.raises(BadSettings, match=r"host\.instance"):
        load_process("yard", Yard, {"host.instance": "a.>"}, {})
