"""The log files of an `up`: their last lines, and what is appended to them.

A log that has become too long is copied to `<name>.log.1` and cut (``RunDir.trim_log``): whoever
follows reads the rest of the copy before it begins again.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from components.cli.rundir import RunDir

BLOCK_BYTES: Final = 65_536
#: Of a line that goes on longer, what is beyond is a line of its own.
LINE_BYTES_MAX: Final = 1024 * 1024
NATS_LOG: Final = "nats-server"


def logs_of(folder: RunDir) -> dict[str, Path]:
    """Every log of this folder by the name of who wrote it, those of the past too."""
    found = {file.name.removesuffix(".log"): file for file in sorted(folder.logs.glob("*.log"))}
    nats = folder.nats / f"{NATS_LOG}.log"
    return {**found, NATS_LOG: nats} if nats.is_file() else found


def last_lines(file: Path, number: int) -> list[str]:
    """At most ``number`` lines from the end of a log, reaching back into the one before it."""
    lines = _tail(file, number)
    if len(lines) < number:
        lines = _tail(rotated(file), number - len(lines)) + lines
    return lines


def rotated(file: Path) -> Path:
    """Where the older part of a log lies."""
    return file.with_suffix(".log.1")


def _tail(file: Path, number: int) -> list[str]:
    if number < 1:
        return []
    try:
        with file.open("rb") as log:
            data = b""
            at = log.seek(0, os.SEEK_END)
            while at and data.count(b"\n") <= number:
                size = min(BLOCK_BYTES, at)
                at = log.seek(at - size)
                data = log.read(size) + data
    except OSError:
        return []
    lines = data.decode(errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines[-number:]


class Follower:
    """What is appended to one log from now on (or from its beginning)."""

    def __init__(self, file: Path, *, from_start: bool = False) -> None:
        self._file = file
        self._offset = 0 if from_start else _size(file)
        self._rest = b""

    def read(self) -> Iterator[str]:
        """The lines that were completed since the last call."""
        size = _size(self._file)
        if size < self._offset:
            # It was cut: what we had not read yet went into the copy first.
            yield from self._lines(self._read(rotated(self._file)))
            self._offset = 0
        if size > self._offset:
            yield from self._lines(self._read(self._file))

    def _read(self, file: Path) -> Iterator[bytes]:
        try:
            with file.open("rb") as log:
                log.seek(self._offset)
                yield from _blocks(log)
                self._offset = log.tell()
        except OSError:
            return

    def _lines(self, blocks: Iterator[bytes]) -> Iterator[str]:
        for block in blocks:
            *lines, self._rest = (self._rest + block).split(b"\n")
            if len(self._rest) > LINE_BYTES_MAX:
                lines.append(self._rest)
                self._rest = b""
            yield from (line.decode(errors="replace") for line in lines)


def _blocks(log: BinaryIO) -> Iterator[bytes]:
    while block := log.read(BLOCK_BYTES):
        yield block


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
