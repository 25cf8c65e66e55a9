"""The menu offers commands that exist, and runs the one that was chosen."""

import argparse
import io

import pytest

from components.cli.main import COMMANDS
from components.cli.menu import ENTRIES, ask_again

NOTHING = argparse.Namespace(data=None, config=None)


def chosen(answers, code=0):
    """(commands that were run, exit code)"""
    ran: list[str] = []

    def do(words):
        ran.append(words[0])
        return code

    return ran, ask_again(NOTHING, io.StringIO(answers), do)


@pytest.mark.parametrize("number", ENTRIES)
def test_every_entry_runs_commands_that_there_are(number):
    ran, _ = chosen(f"{number}\n0\n")
    assert ran == [words[0] for words in ENTRIES[number][1]]
    assert set(ran) <= set(COMMANDS)


def test_an_entry_stops_at_the_first_command_that_fails_and_the_code_is_its_own():
    assert chosen("5\n", code=3) == (["status"], 3)


def test_what_is_no_number_of_the_menu_runs_nothing(capsys):
    assert chosen("12\n") == ([], 0)
    assert "'12' is none of these" in capsys.readouterr().out
