"""What is typed becomes settings, or a message that helps."""

import argparse
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from components.cli import bench, component, main, up
from components.cli.errors import CommandFailed
from components.cli.send_state import value_of
from components.cli.settings import UpSettings
from components.cli.yard import worker_flags
from components.host.errors import BadSettings
from components.host.settings import load
from components.worker.settings import WorkerSettings


def overrides(command: str, *words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    parser.set_defaults(command=command)
    component.add_arguments(parser)
    return component.overrides(parser.parse_args(words))


def up_settings(*words: str, env: dict[str, str] | None = None, config: Path | None = None) -> Any:
    parser = argparse.ArgumentParser()
    parser.set_defaults(command="up")
    up.add_arguments(parser)
    flags = up.overrides(parser.parse_args(words))
    return load(UpSettings, "up", config, env or {}, flags)


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--version"])
    assert capsys.readouterr().out == f"switchyard {version('switchyard')}\n"


def test_without_a_command_all_commands_are_named(capsys: pytest.CaptureFixture[str]):
    assert main.main([]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in main.COMMANDS)


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main.main(["derail"])
    assert "derail" in capsys.readouterr().err


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main.main([command, "--help"])
    assert f"switchyard {command}" in capsys.readouterr().out


def test_a_failed_command_says_why_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main.main(["status", "--data", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("switchyard: no `switchyard up` runs on")


def test_nothing_typed_overrides_nothing():
    assert overrides("gateway") == {}


def test_short_flags_and_assignments_become_settings():
    words = "--role decode --speed 2 --instance decode-0 --nats nats://x --key-file k"
    words += " --config c.toml --set seqs_max=8 --set host.log_level=debug"
    assert overrides("worker", *words.split()) == {
        "role": "decode",
        "speed": 2.0,
        "host.instance": "decode-0",
        "host.nats_url": "nats://x",
        "host.nats_key_file": "k",
        "config": "c.toml",
        "seqs_max": "8",
        "host.log_level": "debug",
    }


def test_an_assignment_may_hold_an_equals_sign():
    assert overrides("worker", "--set", "profile=constant:ttft_ms=5") == {
        "profile": "constant:ttft_ms=5"
    }


def test_an_assignment_wins_over_a_flag():
    assert overrides("gateway", "--set", "port=2", "--port", "1") == {"port": "2"}


@pytest.mark.parametrize("words", [["--set", "alone"], ["--set", "=1"], ["--port", "many"]])
def test_what_is_no_setting_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        overrides("gateway", *words)
    assert "error" in capsys.readouterr().err


def test_an_up_is_one_pair_of_simulated_engines_on_loopback_by_default():
    settings = up_settings()
    assert (settings.host, settings.port, settings.udp_port) == ("127.0.0.1", 8000, 9999)
    assert WorkerSettings().engine == "sim"
    assert worker_flags(settings) == []
    assert (settings.prefill, settings.decode, settings.aggregated) == (None, None, None)


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path):
    config = tmp_path / "c.toml"
    config.write_text("[up]\nport = 1001\nprefill = 2\nspeed = 3.0\n")
    env = {"SWITCHYARD_UP_PORT": "1002", "SWITCHYARD_UP_PREFILL": "3"}
    settings = up_settings("--port", "1003", env=env, config=config)
    assert (settings.port, settings.prefill, settings.speed) == (1003, 3, 3.0)


@pytest.mark.parametrize(
    "typed", ["--port 70000", "--engine steam", "--decode -1", "--speed 0", "--port x"]
)
def test_an_up_that_makes_no_sense_is_refused(typed: str):
    flag, value = typed.split()
    with pytest.raises(BadSettings, match=flag.removeprefix("--")):
        up_settings(flag, value)


@pytest.mark.parametrize(
    ("host", "insecure", "starts"),
    [
        ("127.0.0.1", "true", True),
        ("127.0.0.2", "true", True),
        ("::1", "true", True),
        ("localhost", "true", True),
        ("0.0.0.0", "false", True),
        ("0.0.0.0", "true", False),
        ("::", "true", False),
        ("yard.example", "true", False),
    ],
)
def test_who_may_log_in_by_name_alone_sits_at_this_machine(host: str, insecure: str, starts: bool):
    env = {"SWITCHYARD_REGISTRY_INSECURE_USERNAME_LOGIN": insecure}
    settings = up_settings("--host", host)
    if starts:
        up.see_who_may_log_in(settings, None, env)
        return
    with pytest.raises(BadSettings, match=f"insecure_username_login.*gateway.host.*{host}"):
        up.see_who_may_log_in(settings, None, env)


@pytest.mark.parametrize("more", [[], ["--detach"]])
def test_an_up_where_anybody_could_log_in_from_elsewhere_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
):
    (tmp_path / "c.toml").write_text("[registry]\ninsecure_username_login = true\n")
    words = ["--config", str(tmp_path / "c.toml"), "--data", str(tmp_path / "data"), *more]
    assert main.main(["up", "--host", "0.0.0.0", *words]) == 78
    said = capsys.readouterr().err
    assert "registry.insecure_username_login" in said
    assert "gateway.host" in said
    assert not (tmp_path / "data").exists()


def test_a_field_of_a_datagram_is_a_number_where_it_reads_as_one():
    assert [value_of(text) for text in ("7", "0.5", "true", "busy", '"7"')] == [
        7, 0.5, True, "busy", "7",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------- bench


def bench_args(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["serve", "--url", "http://127.0.0.1:1", *words])


def test_a_closed_loop_asks_for_equal_requests():
    words = (
        "--concurrency",
        "4",
        "--requests",
        "3",
        "--prompt-tokens",
        "10",
        "--output-tokens",
        "5",
    )
    found = bench.arrivals_from(bench_args(*words))
    assert [(a.prompt_tokens, a.output_tokens) for a in found] == [(10, 5)] * 3


def test_an_open_loop_keeps_to_the_rate(tmp_path: Path):
    trace = tmp_path / "t.csv"
    rows = "".join(f"2023-11-16 18:15:{s:02d}.0,10,5\n" for s in range(11))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    found = bench.arrivals_from(bench_args("--trace", str(trace), "--rate", "4", "--limit", "5"))
    assert [a.at_s for a in found] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "words",
    [
        ("--trace", "t", "--concurrency", "1"),
        ("--concurrency", "1", "--rate", "2"),
        ("--limit", "2"),
    ],
)
def test_a_load_is_open_or_closed_and_never_both(words: tuple[str, ...]):
    with pytest.raises(CommandFailed, match="--trace"):
        bench.arrivals_from(bench_args(*words))


@pytest.mark.parametrize("words", [("--requests", "0"), ("--rate", "0"), ("--rate", "-1")])
def test_a_load_of_nothing_is_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        bench_args(*words)
    assert words[0] in capsys.readouterr().err


def test_a_remote_target_is_refused(capsys: pytest.CaptureFixture[str]):
    words = ["bench", "serve", "--url", "http://192.0.2.7:8000", "--concurrency", "1"]
    assert main.main(words) == 1
    assert "--allow-remote" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> int:
        raise BrokenPipeError

    opened: list[tuple[int, int]] = []
    monkeypatch.setattr(main, "_run", broken)
    monkeypatch.setattr("os.dup2", lambda new, old: opened.append((new, old)))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.FileIO(1, "w", closefd=False)))
    assert main.main(["status"]) == 0
    assert opened
