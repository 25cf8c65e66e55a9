"""`switchyard down`: end the `up` of a folder in order, from another shell.

Exits 0 when it has ended (or none ran), 1 when it had to be hurried or does not end.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from components.cli import found
from components.cli.errors import CommandFailed
from components.cli.rundir import RunDir

POLL_S: Final = 0.05
#: Beyond the drain that the `up` was told: several components end one after the other.
MARGIN_S: Final = 40.0
#: After the second signal nothing is waited for any more.
HURRIED_S: Final = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--timeout",
        type=float,
        metavar="S",
        help=f"hurry it after so long (default: its drain_s and {MARGIN_S:g} s)",
    )
    add("--now", action="store_true", help="do not wait for running requests")
    found.add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    folder = found.folder(args.data)
    pid = folder.holder()
    if pid is None:
        print(f"no `switchyard up` runs on {folder.path}")
        return 0
    page = folder.read()
    timeout_s = args.timeout
    if timeout_s is None:
        timeout_s = (page.drain_s if page else 0.0) + MARGIN_S
    say(f"pid {pid}: " + ("ending now" if args.now else f"draining, at most {timeout_s:g} s"))
    send(pid, signal.SIGINT)
    # Two equal signals may be delivered as one, so the second is another.
    if gone(folder, pid, 0.3 if args.now else timeout_s):
        return ended(folder, pid, 0)
    if not args.now:
        say(f"not ended after {timeout_s:g} s: hurrying it, what still runs is cut off")
    send(pid, signal.SIGTERM)
    if gone(folder, pid, HURRIED_S):
        return ended(folder, pid, 0 if args.now else 1)
    raise CommandFailed(
        f"pid {pid} still runs after {HURRIED_S:g} s. `kill -KILL {pid}` ends it;"
        " its processes then end by themselves"
    )


def send(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise CommandFailed(f"pid {pid} belongs to somebody else: ask them to end it") from error


def gone(
    folder: RunDir, pid: int, within_s: float, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Has the folder been let go by this process in time?"""
    deadline_s = time.monotonic() + within_s
    while folder.holder() == pid:
        if time.monotonic() > deadline_s:
            return False
        sleep(POLL_S)
    return True


def ended(folder: RunDir, pid: int, code: int) -> int:
    print(f"ended: pid {pid} on {folder.path}")
    return code


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
