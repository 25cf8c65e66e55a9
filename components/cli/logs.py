"""`switchyard logs`: what the processes of an `up` wrote, in the order of time."""

import argparse
import fnmatch
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from components.cli import found
from components.cli.errors import CommandFailed
from components.cli.log_files import Follower, last_lines, logs_of
from components.cli.log_lines import Clock, Line, as_json, merged, printable, timed
from components.cli.rundir import RunDir

TAIL: Final = 100
LINES_MAX: Final = 100_000
POLL_S: Final = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="router-0, 'decode-*' ...; all when none is given")
    add("--follow", action="store_true", help="go on with what is written from now on")
    add("--lines", type=line_count, default=TAIL, metavar="N", help="the last N (default: 100)")
    add("--json", action="store_true", help="one JSON object per line: name, time, line")
    found.add_data_argument(parser)


def line_count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= LINES_MAX:
        raise argparse.ArgumentTypeError(f"0 to {LINES_MAX}")
    return number


def run(args: argparse.Namespace) -> int:
    folder = found.folder(args.data)
    files = chosen(logs_of(folder), args.names)
    if not files and not args.follow:
        raise CommandFailed(nothing_there(folder, args.names))
    clocks = {name: Clock() for name in files}
    followers = {name: Follower(file) for name, file in files.items()} if args.follow else {}
    tails = [timed(n, last_lines(f, args.lines), clocks[n]) for n, f in files.items()]
    lines = list(merged(tails))
    show(lines[len(lines) - min(args.lines, len(lines)) :], as_objects=args.json)
    while args.follow:
        time.sleep(POLL_S)
        for name, file in chosen(logs_of(folder), args.names).items():
            if name not in followers:  # a process that was not there before
                followers[name], clocks[name] = Follower(file, from_start=True), Clock()
        news = [timed(n, follower.read(), clocks[n]) for n, follower in followers.items()]
        show(merged(news), as_objects=args.json)
    return 0


def chosen(files: dict[str, Path], names: Iterable[str]) -> dict[str, Path]:
    """The logs that one of the patterns means."""
    patterns = list(names) or ["*"]
    return {n: f for n, f in files.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}


def nothing_there(folder: RunDir, names: Iterable[str]) -> str:
    there = ", ".join(logs_of(folder))
    if there:
        return f"no log of {' or '.join(names)} in {folder.path}; there are: {there}"
    return f"no logs in {folder.path}: no `switchyard up` ran there. Say where with --data"


def show(lines: Iterable[Line], *, as_objects: bool) -> None:
    for line in lines:
        text = as_json(line) if as_objects else f"{line.name:<12} {printable(line.text)}"
        print(text, flush=True)
