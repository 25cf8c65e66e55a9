"""`switchyard up --detach`: the same `up` in the background, in a session of its own.

What it says goes to DIR/logs/up.log. This command returns when the yard is ready, or fails with the
last words of the `up` that did not become so.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from components.cli.errors import CommandFailed
from components.cli.rundir import RunDir
from components.cli.supervisor import COMMAND

LOG: Final = "up"
POLL_S: Final = 0.05
#: What `up` may take to end in order after its own time to start is over.
MARGIN_S: Final = 120.0
INTERRUPTED: Final = 130


def start(arguments: Sequence[str], folder: RunDir, start_timeout_s: float) -> int:
    """Start `up arguments...` and wait for it; returns the exit code of this command.

    Raises ``CommandFailed`` with its exit code when it ended before it was ready.
    """
    if (pid := folder.holder()) is not None:
        raise CommandFailed(
            f"another `switchyard up` (pid {pid}) runs on {folder.path}. End it with"
            " `switchyard down`, or choose another folder with --data"
        )
    log, offset, process = _spawn(arguments, folder)
    print(f"starting pid {process.pid}, log {log}", file=sys.stderr, flush=True)
    deadline_s = time.monotonic() + start_timeout_s + MARGIN_S
    try:
        while True:
            ended = process.poll() is not None
            said = _read(log, offset)
            if ready := ready_line(said):
                print(ready, flush=True)
                print("It runs on. See it: switchyard status, logs; end it: switchyard down")
                return 0
            if ended:
                raise CommandFailed(why(said, log), process.returncode or 1)
            if time.monotonic() > deadline_s:
                process.send_signal(signal.SIGTERM)
                raise CommandFailed(f"not ready in time and told to end; see {log}")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        print("ending it again", file=sys.stderr, flush=True)
        process.send_signal(signal.SIGTERM)
        process.wait()
        return INTERRUPTED


def ready_line(said: str) -> str | None:
    """The line with which `up` says where it serves, once it is complete."""
    lines = said.split("\n")[:-1]
    return next((line for line in lines if line.startswith("ready http")), None)


def why(said: str, log: Path) -> str:
    """Its own words from its last complaint on."""
    _, marker, message = said.rpartition("switchyard: ")
    return message.strip() if marker else f"`up` ended without a word; see {log}"


def _spawn(arguments: Sequence[str], folder: RunDir) -> tuple[Path, int, "subprocess.Popen[bytes]"]:
    try:
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = folder.open_log(LOG)
    except OSError as error:
        raise CommandFailed(f"cannot use {folder.path}: {error.strerror}") from error
    try:
        # A time that the seconds which `up` counts start from (log_lines.py).
        now = datetime.now(tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        os.write(descriptor, f"{now} INFO switchyard.up detached\n".encode())
        offset = os.fstat(descriptor).st_size
        process = subprocess.Popen(
            [*COMMAND, "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    return folder.log_file(LOG), offset, process


def _read(log: Path, offset: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
