"""The bundles that were imported: a folder of the user's, bounded, each under a name.

What is kept was checked as it lies there, and is checked again by whoever opens it. The folder is
locked while something is brought in or removed.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from components.replay.bundle import BYTES_MAX, MIB, BadBundle, Manifest
from components.replay.bundle_reader import open_bundle, read_manifest

BUNDLES_MAX: Final = 64
#: On disk, all together: four of the largest.
LIBRARY_BYTES_MAX: Final = 4 * BYTES_MAX
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE: Final = "a letter or digit, then up to 63 of letters, digits, and . _ -"
#: One at a time, under the lock. What a killed import left is overwritten by the next one.
_COMING: Final = ".importing"


class CannotKeep(Exception):
    """The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A bundle in the library; without a manifest it is ``damaged``, in the words of why."""

    name: str
    path: Path
    bytes: int
    manifest: Manifest | None
    damaged: str = ""


class Bundles:
    """The library in ``folder``, which is made when the first one is imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def listed(self) -> list[Kept]:
        """All of them, by name. Of each the manifest is read, not the whole."""
        return [_look(path) for path in self._paths()]

    def find(self, name: str) -> Path | None:
        """Where the bundle of that name lies."""
        path = self._path(name) if NAME.fullmatch(name) else None
        return path if path and path.is_file() else None

    def keep(self, file: Path, name: str | None = None) -> Kept:
        """A copy of ``file`` under ``name``, or its own without ``.zip``.

        Raises ``BadBundle`` for what is none or not whole, ``CannotKeep`` where there is no room
        for it or the name is taken, ``OSError``; then nothing is kept.
        """
        name = file.name.removesuffix(".zip") if name is None else name
        if not NAME.fullmatch(name):
            raise CannotKeep(f"{name!r} cannot be a name ({NAME_RULE}): choose one with --name")
        if not file.is_file():
            raise BadBundle(f"there is no {file}")
        with self._locked():
            coming = self.folder / _COMING
            try:
                self._check_room(name, file.stat().st_size)
                _copy(file, coming)
                open_bundle(coming, called=str(file))
                coming.replace(self._path(name))
            finally:
                coming.unlink(missing_ok=True)
        return _look(self._path(name))

    def remove(self, name: str) -> bool:
        """False when there is none of that name."""
        if self.find(name) is None:
            return False
        with self._locked():
            self._path(name).unlink(missing_ok=True)
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.zip"

    def _paths(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("*.zip") if NAME.fullmatch(p.stem))

    def _check_room(self, name: str, size: int) -> None:
        paths = self._paths()
        held = sum(path.stat().st_size for path in paths)
        remove = "remove one with: switchyard replay bundles --remove NAME"
        if self._path(name) in paths:
            raise CannotKeep(f"a bundle {name!r} is there: choose another --name, or {remove}")
        if len(paths) >= BUNDLES_MAX:
            raise CannotKeep(f"{BUNDLES_MAX} bundles are kept already: {remove}")
        if size > BYTES_MAX:
            raise CannotKeep(f"it is larger than {BYTES_MAX // MIB} MiB, as no bundle is")
        if held + size > LIBRARY_BYTES_MAX:
            raise CannotKeep(f"at most {LIBRARY_BYTES_MAX // MIB} MiB are kept: {remove}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _copy(file: Path, to: Path) -> None:
    """For its owner only, on disk when this returns."""
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out, file.open("rb") as given:
        shutil.copyfileobj(given, out, MIB)
        out.flush()
        os.fsync(out.fileno())


def _look(path: Path) -> Kept:
    size = path.stat().st_size
    try:
        return Kept(path.stem, path, size, read_manifest(path))
    except BadBundle as error:
        return Kept(path.stem, path, size, None, str(error))
