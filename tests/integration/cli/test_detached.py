"""An operator's day with a yard in the background: start, look, try, read, hold, end."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from components.cli.rundir import RunDir
from tests.integration.cli.yards import FAST, called, switchyard, until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    done = switchyard(
        "up", "--detach", "--port", 0, "--udp-port", 0, "--profile", FAST, "--data", folder,
        timeout_s=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "http://" in done.stdout
    yield folder
    called("down", "--data", folder)


def test_a_yard_in_the_background_serves_is_held_and_ends(data: Path):
    page = RunDir(data).read()
    assert page is not None
    assert called("status", "--data", data).returncode == 0

    chat = called("test", "--data", data)
    assert chat.returncode == 0, chat.stderr

    logs = called("logs", "gateway-0", "--data", data)
    assert logs.returncode == 0
    assert logs.stdout

    paused = called("engine", "pause", "decode-0", "--data", data)
    assert paused.returncode == 0, paused.stderr + paused.stdout
    assert "paused" in paused.stdout
    assert "taking work" not in paused.stdout
    resumed = called("engine", "resume", "decode-0", "--data", data)
    assert "running, taking work" in resumed.stdout
    assert called("test", "--data", data).returncode == 0

    ended = called("down", "--data", data)
    assert ended.returncode == 0, ended.stderr
    until(lambda: not psutil.pid_exists(page.pid), "the yard has ended")
    after = called("status", "--json", "--data", data)
    assert after.returncode == 1
    assert "no `switchyard up` runs" in after.stderr
    assert "no `switchyard up` runs" in called("down", "--data", data).stdout


def test_a_second_detached_up_on_the_folder_is_refused(data: Path):
    again = switchyard("up", "--detach", "--port", 0, "--udp-port", 0, "--data", data)
    assert again.returncode != 0
    assert "runs" in again.stderr
    page = RunDir(data).read()
    assert page is not None
    assert json.loads(called("status", "--json", "--data", data).stdout)["ok"]
