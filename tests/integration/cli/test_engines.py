"""`switchyard engine list|show|forget`, over the deaths of whole yards."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.cli.rundir import RunDir
from tests.integration.cli.yards import FAST, called, switchyard, until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    called("down", "--data", tmp_path / "data")


def start(data: Path, *layout: object) -> None:
    words = ("--detach", "--port", 0, "--udp-port", 0, "--profile", FAST, "--data", data, *layout)
    done = switchyard("up", *words, timeout_s=60)
    assert done.returncode == 0, done.stderr


def kill(data: Path) -> None:
    """Everything at once, as a power cut does."""
    page = RunDir(data).read()
    assert page is not None
    family = [psutil.Process(page.pid), *psutil.Process(page.pid).children(recursive=True)]
    os.kill(page.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def engines(data: Path, *words: str) -> dict[str, dict[str, Any]]:
    answer = called("engine", "list", "--json", *words, "--data", data)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["complete"]
    return {engine["record"]["engine"]: engine for engine in found["engines"]}


def written(data: Path, *names: str) -> dict[str, dict[str, Any]]:
    """The engines, once the records of these say what they are."""

    def described() -> dict[str, dict[str, Any]]:
        found = engines(data)
        records = [found[name]["record"] for name in names]
        return found if all(r["about"]["kind"] and r["revision"] for r in records) else {}

    there: dict[str, dict[str, Any]] = until(described, "the engines are written")
    return there


def test_engines_that_died_with_their_yard_are_missing_in_the_next_one_until_they_are_forgotten(
    data: Path,
):
    start(data)
    found = written(data, "decode-0", "prefill-0")
    record = found["decode-0"]["record"]
    assert (record["state"], record["role"], record["about"]["kind"]) == ("READY", "decode", "sim")
    refused = called("engine", "forget", "decode-0", "--data", data)
    assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
    kill(data)

    start(data, "--aggregated", 1)
    assert set(engines(data, "--missing")) == {"decode-0", "prefill-0"}
    text = called("engine", "list", "--data", data).stdout
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "MISSING" in lines["decode-0"]
    assert " yes " in lines["aggregated-0"]
    shown = called("engine", "show", "decode-0", "--data", data)
    assert "profile" in shown.stdout
    assert "heard = MISSING" in shown.stdout
    plain = json.loads(called("engine", "show", "decode-0", "--json", "--data", data).stdout)
    assert plain["record"] == record
    for name in ("decode-0", "prefill-0"):
        assert "is forgotten" in called("engine", "forget", name, "--data", data).stdout
    assert set(engines(data)) == {"aggregated-0"}


def test_engines_that_left_are_no_loss_and_what_makes_no_sense_is_refused(data: Path):
    start(data)
    written(data, "decode-0", "prefill-0")
    assert called("down", "--data", data).returncode == 0
    start(data, "--aggregated", 1)
    found = engines(data)
    assert [found[n]["record"]["state"] for n in ("decode-0", "prefill-0")] == ["STOPPED"] * 2
    assert engines(data, "--missing") == {}
    for words, code in (
        (("show", "nobody"), 1),
        (("forget", "nobody"), 1),
        (("show", ""), 2),
        (("show", "x" * 300), 2),
        (("list", "decode-0"), 2),
        (("show",), 2),
        (("drain",), 2),
    ):
        assert called("engine", *words, "--data", data).returncode == code, words
