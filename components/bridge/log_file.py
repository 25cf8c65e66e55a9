"""The seed's log, for tools that read it: one JSON line per state, in files that rotate.

    {"timestamp": 1795000000.25, "state": {the eight fields}}

JetStream keeps the history; this is an export. A thread writes, because a disk may take its time;
what it cannot keep up with is dropped and counted, never waited for.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import orjson

from components.host.errors import CannotStart
from schemas.engine import EngineStateReceived

#: The seed's eight fields, in its order.
FIELDS: Final = tuple(EngineStateReceived.model_fields)[:8]
#: Batches that may wait for the disk.
WAITING_MAX: Final = 1024
_END: Final = None


def line(state: EngineStateReceived) -> bytes:
    """One line of the log."""
    values = state.__dict__
    fields = {name: values[name] for name in FIELDS}
    return orjson.dumps({"timestamp": state.received_ms / 1000, "state": fields}) + b"\n"


class LogFile:
    """Appends to ``path``; at ``bytes_max`` it becomes ``path.1``, the one before ``path.2``, ...

    ``files`` are kept besides the one that is written. A file that was renamed or removed by
    somebody else (logrotate) is opened anew. ``count(name, by)`` hears what became of states.
    """

    def __init__(
        self, path: Path, *, bytes_max: int, files: int, count: Callable[[str, int], None]
    ) -> None:
        """Raises ``CannotStart`` when the file cannot be written."""
        self._path = path
        self._bytes_max = bytes_max
        self._files = files
        self._count = count
        self._waiting: queue.Queue[Sequence[EngineStateReceived] | None] = queue.Queue(WAITING_MAX)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise CannotStart(f"cannot write the log of states {path}: {error}") from error
        self._thread = threading.Thread(target=self._run, name="bridge.log", daemon=True)
        self._thread.start()

    def write(self, states: Sequence[EngineStateReceived]) -> None:
        """Hand over; never waits."""
        try:
            self._waiting.put_nowait(states)
        except queue.Full:
            self._count("log_dropped_total", len(states))

    def close(self, within_s: float = 2.0) -> None:
        """Write what waits, for at most ``within_s``."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(_END, timeout=within_s)
        self._thread.join(within_s)

    def _run(self) -> None:
        while (states := self._waiting.get()) is not _END:
            data = b"".join(map(line, states))
            try:
                self._append(data)
            except OSError:
                # A full disk: what comes later may fit again.
                self._count("log_errors_total", 1)
                self._count("log_dropped_total", len(states))
            else:
                self._count("logged_total", len(states))
        self._file.close()

    def _append(self, data: bytes) -> None:
        if self._file.closed or self._moved():
            self._file.close()
            self._file = self._path.open("ab", buffering=0)
        if self._file.tell() and self._file.tell() + len(data) > self._bytes_max:
            self._rotate()
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _moved(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        mine = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._files, 0, -1):
            older = self._numbered(number - 1) if number > 1 else self._path
            if older.exists():
                older.replace(self._numbered(number))
        if self._files == 0:
            self._path.unlink(missing_ok=True)
        self._file = self._path.open("ab", buffering=0)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
