"""A person sees what is being done; a log gets plain lines."""

import pytest

from components.cli.progress import PlainProgress, TerminalProgress, progress


def test_a_log_gets_each_step_once_with_its_time(capsys: pytest.CaptureFixture[str]):
    with PlainProgress() as shown:
        shown.step("starting")
        shown.step("starting")
        shown.say("router-0 was ended by SIGKILL; started again")
        shown.rest()
        shown.step("draining")
        shown.show("curl http://x")
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines.pop() == "curl http://x"
    assert [line.split("] ")[1] for line in lines] == [
        "starting",
        "router-0 was ended by SIGKILL; started again",
        "draining",
    ]
    assert all(line.endswith(("s] starting", "again", "draining")) for line in lines)


def test_a_terminal_gets_lines_that_stay_as_they_are(capsys: pytest.CaptureFixture[str]):
    with TerminalProgress() as shown:
        shown.step("starting [bold]processes")
        shown.say("curl -d '[1, 2]' " + "x" * 200)
        shown.rest()
    said = capsys.readouterr()
    assert said.out == ""
    # Neither read as markup nor wrapped: it is there to be copied.
    assert "curl -d '[1, 2]' " + "x" * 200 in said.err


def test_what_is_no_terminal_gets_plain_lines():
    assert isinstance(progress(), PlainProgress)
