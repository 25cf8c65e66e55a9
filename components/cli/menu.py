"""`switchyard menu`: the commands by number, for whoever would rather be asked."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TextIO

#: Number -> (what it says, the command lines it runs one after the other).
ENTRIES: Final[dict[str, tuple[str, tuple[tuple[str, ...], ...]]]] = {
    "1": ("start the control plane in the background", (("up", "--detach", "--no-workers"),)),
    "2": ("run a prefill engine here, until Ctrl-C", (("join", "prefill"),)),
    "3": ("run a decode engine here, until Ctrl-C", (("join", "decode"),)),
    "4": ("start all in the background", (("up", "--detach"),)),
    "5": ("look who runs, and test with one chat", (("status",), ("test",))),
    "6": ("show the configuration", (("config", "--changed"),)),
    "7": ("show the logs", (("logs", "--lines", "40"),)),
    "8": ("look for problems", (("doctor",),)),
    "9": ("end it", (("down",),)),
}
LEAVE: Final = "0"
#: Commands that read the settings of `up` rather than the folder of one that runs.
WITH_CONFIG: Final = frozenset({"up", "join", "config", "doctor"})
WITHOUT_DATA: Final = frozenset({"config"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the yard")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file for `up`")


def run(args: argparse.Namespace) -> int:
    from components.cli.main import main

    return ask_again(args, sys.stdin, main)


def ask_again(args: argparse.Namespace, answers: TextIO, do: Callable[[Sequence[str]], int]) -> int:
    """Read choices until 0 or the end; returns the exit code of the last command."""
    code = 0
    while True:
        print(page(), end="", flush=True)
        line = answers.readline()
        choice = line.strip()
        if not line or choice == LEAVE:
            return code
        if choice not in ENTRIES:
            print(f"{choice!r} is none of these")
            continue
        for words in ENTRIES[choice][1]:
            code = _do(do, command(words, args))
            if code:
                break


def _do(do: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    print(f"$ switchyard {' '.join(words)}", flush=True)
    try:
        return do(words)
    except SystemExit as ended:  # argparse
        return ended.code if isinstance(ended.code, int) else 1


def page() -> str:
    lines = [f"  {number}  {says}" for number, (says, _) in ENTRIES.items()]
    return "\n".join(["", *lines, f"  {LEAVE}  leave", "choice: "])


def command(words: Sequence[str], args: argparse.Namespace) -> list[str]:
    """The command line with the folder and file that the menu was given."""
    more: list[str] = []
    if args.data and words[0] not in WITHOUT_DATA:
        more += ["--data", str(args.data)]
    if args.config and words[0] in WITH_CONFIG:
        more += ["--config", str(args.config)]
    return [*words, *more]
