"""The folder of an `up` belongs to one at a time, says where things are, and stays bounded."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from components.cli import rundir
from components.cli.errors import CommandFailed
from components.cli.rundir import RunDir, RunFile, RunningProcess, default_data_dir

PAGE = RunFile(
    url="http://127.0.0.1:8000",
    udp="127.0.0.1:9999",
    nats_url="nats://127.0.0.1:4222",
    keys_dir="/keys",
    subject_prefix="yard",
    pid=os.getpid(),
    processes={"router-0": RunningProcess("router", None, "/logs/router-0.log")},
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_state_lies_where_the_user_wants_it(tmp_path: Path):
    home = Path("/home/u")
    assert default_data_dir({}, home) == home / ".local/state/switchyard"
    assert default_data_dir({"XDG_STATE_HOME": "/state"}, home) == Path("/state/switchyard")
    # A relative path there is to be ignored, says the specification.
    assert default_data_dir({"XDG_STATE_HOME": "s"}, home) == home / ".local/state/switchyard"


def test_a_page_is_read_as_it_was_written_by_its_owner_only(tmp_path: Path):
    folder = RunDir(tmp_path / "new")
    with folder.locked():
        folder.write(PAGE)
        assert folder.read() == PAGE
        assert mode(tmp_path / "new" / "run.json") == 0o600
        assert mode(tmp_path / "new") == 0o700
        folder.clear()
        assert folder.read() is None


def test_the_page_of_an_up_that_was_killed_is_no_page(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as gone:
        gone.wait()
    RunDir(tmp_path).write(replace(PAGE, pid=gone.pid))
    assert RunDir(tmp_path).read() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layout": 99, "processes": {}}', "null"])
def test_a_page_of_another_hand_is_no_page(tmp_path: Path, text: str):
    (tmp_path / "run.json").write_text(text)
    assert RunDir(tmp_path).read() is None


HOLD = """
import sys
from dataclasses import replace
from pathlib import Path
from components.cli.rundir import RunDir
with RunDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_and_the_message_says_by_whom(tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(CommandFailed, match=rf"pid {holder.pid}.*--data"),
            RunDir(tmp_path).locked(),
        ):
            pass
        holder.kill()  # a killed one leaves no lock behind
        holder.wait()
        with RunDir(tmp_path).locked():
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    folder = RunDir(tmp_path / "file" / "data")
    with pytest.raises(CommandFailed, match="cannot use"), folder.locked():
        pass


def test_a_log_is_appended_to_and_cut_when_it_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rundir, "LOG_BYTES_MAX", 10)
    folder = RunDir(tmp_path)
    log = folder.open_log("router-0")
    os.write(log, b"short\n")
    folder.trim_log("router-0")
    assert folder.log_file("router-0").read_bytes() == b"short\n"
    os.write(log, b"and then more\n")
    folder.trim_log("router-0")
    os.write(log, b"after\n")  # by the process that holds it open
    os.close(log)
    assert folder.log_file("router-0").read_bytes() == b"after\n"
    assert (tmp_path / "logs" / "router-0.log.1").read_bytes() == b"short\nand then more\n"


def test_last_words_are_the_last_lines_that_say_something(tmp_path: Path):
    folder = RunDir(tmp_path)
    folder.logs.mkdir()
    folder.log_file("x").write_text("one\ntwo\n\nthree\n\nfour\n\n")
    assert folder.last_words("x") == "two\nthree\nfour"
    assert folder.last_words("nobody") == ""
