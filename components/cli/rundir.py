"""The folder of one `up`: its lock, the page that tells others where everything is, keys, logs.

DIR/up.lock    held while an `up` runs
DIR/run.json   where it runs, for `switchyard status` and the like; gone when it has stopped
DIR/keys/      one nkey seed per process and role
DIR/logs/      one file per process
DIR/nats/      the server's configuration and JetStream's files
DIR/bundles/   incidents that were imported (`switchyard replay import`); they need no `up`
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from components.cli.errors import CommandFailed

LAYOUT: Final = 1
#: A log is moved to `<name>.log.1` (the one before is lost) when it has this size at a look.
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
#: So often, so far apart, the lock is tried before it counts as taken.
LOOKS: Final = 3
LOOK_S: Final = 0.02
LAST_WORDS_BYTES: Final = 8192
LAST_WORDS_LINES: Final = 3


def default_data_dir(env: Mapping[str, str], home: Path) -> Path:
    """Where the user's state belongs (https://specifications.freedesktop.org/basedir-spec)."""
    state = Path(env.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else home / ".local" / "state") / "switchyard"


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """One supervised process. ``pid`` None: it is being started again."""

    component: str
    pid: int | None
    log: str


@dataclass(frozen=True, slots=True)
class RunFile:
    """What `up` tells the other commands. No secrets, only where they lie."""

    url: str
    udp: str
    nats_url: str
    keys_dir: str
    subject_prefix: str
    pid: int
    processes: dict[str, RunningProcess] = field(default_factory=dict)
    layout: int = LAYOUT
    #: How long running requests may take when it is told to end.
    drain_s: float = 20.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ``ValueError`` for anything that no `up` of this version wrote."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["layout"] != LAYOUT:
                raise ValueError(f"layout {values['layout']} where {LAYOUT} belongs")
            processes = {n: RunningProcess(**p) for n, p in values.pop("processes").items()}
            return cls(processes=processes, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the page of an `up`: {error!r}") from error


class RunDir:
    """The folder at ``path``; made on first use, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.keys = self.path / "keys"
        self.logs = self.path / "logs"
        self.nats = self.path / "nats"
        self.bundles = self.path / "bundles"
        self._lock = self.path / "up.lock"
        self._page = self.path / "run.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; raises ``CommandFailed`` when another `up` does."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CommandFailed(f"cannot use {self.path}: {error.strerror}") from error
        try:
            if not _taken_over(descriptor):
                raise CommandFailed(self._taken(os.read(descriptor, 20).decode()))
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
            os.truncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def _taken(self, pid: str) -> str:
        return (
            f"another `switchyard up` (pid {pid or '?'}) runs on {self.path}. Stop it with"
            " Ctrl-C or `switchyard down`, or choose another folder with --data"
        )

    def holder(self) -> int | None:
        """The process that holds the folder, from before its page is written until it has ended.

        None when there is none. Whoever looks holds the lock for that moment.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 20)
            return int(text) if text.isdigit() else None
        finally:
            os.close(descriptor)
        return None

    def read(self) -> RunFile | None:
        """What the `up` of this folder says; None when none runs or its page cannot be read."""
        try:
            page = RunFile.from_json(self._page.read_text())
        except (OSError, ValueError):
            return None
        # One that was killed could not take its page away.
        return page if _runs(page.pid) else None

    def write(self, page: RunFile) -> None:
        """Replace the page in one step."""
        fresh = self._page.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(page.to_json())
        fresh.replace(self._page)

    def clear(self) -> None:
        """There is no `up` here any more."""
        self._page.unlink(missing_ok=True)

    def log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def open_log(self, name: str) -> int:
        """A descriptor that appends to the log of ``name``; the caller closes it."""
        self.logs.mkdir(mode=0o700, exist_ok=True)
        self.trim_log(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.log_file(name), flags, 0o600)

    def trim_log(self, name: str) -> None:
        """Keep a log bounded. Copied and cut, because the process holds it open for appending."""
        file = self.log_file(name)
        if not file.exists() or file.stat().st_size < LOG_BYTES_MAX:
            return
        file.with_suffix(".log.1").write_bytes(file.read_bytes())
        os.truncate(file, 0)

    def last_words(self, name: str) -> str:
        """The end of a log: why a process ended, in its own words."""
        try:
            with self.log_file(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join([line for line in lines if line.strip()][-LAST_WORDS_LINES:])


def _taken_over(descriptor: int) -> bool:
    """Is the lock ours? Tried for a moment: somebody may only be looking who holds it."""
    for _ in range(LOOKS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_S)
        else:
            return True
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
