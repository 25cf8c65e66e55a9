"""A whole fleet as a user starts it, held from outside: `switchyard up` in a folder of its own."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from bus.codec import Decoded
from bus.history import History, decode_stored
from components.cli.rundir import RunDir, RunFile
from tests.show.proof import Void
from tests.show.python import planted

SWITCHYARD = (sys.executable, "-P", "-m", "components.cli")


class Fleet:
    """One `switchyard up`. Processes are named as in `switchyard status`."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str] = (),
        fault: str | None = None,
        **settings: str | float,
    ) -> None:
        """``settings`` as in the environment, without the prefix: ``worker_seqs_max=24``."""
        self.data = folder
        self._arguments = arguments
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}
        self._environment |= {f"SWITCHYARD_{k.upper()}": str(v) for k, v in settings.items()}
        self._environment |= planted(fault)
        self._up: asyncio.subprocess.Process | None = None
        self.url = ""
        self.ready_s = 0.0

    async def start(self, timeout_s: float = 60.0) -> None:
        """Return when `up` has printed its one line; raises ``Void`` when it does not."""
        began = time.monotonic()
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "up.log").open("ab") as log:
            self._up = await asyncio.create_subprocess_exec(
                *SWITCHYARD,
                *("up", "--port", "0", "--udp-port", "0", "--data", str(self.data)),
                *self._arguments,
                cwd=self.data,
                env=self._environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._up.stdout is not None
        try:
            line = await asyncio.wait_for(self._up.stdout.readline(), timeout_s)
        except TimeoutError:
            line = b""
        if not line.startswith(b"ready http://"):
            tail = (self.data / "up.log").read_text()[-600:]
            await self.stop()
            raise Void(f"the fleet did not start: {tail}")
        self.url = line.split()[1].decode()
        self.ready_s = time.monotonic() - began

    async def stop(self) -> int:
        """Ctrl-C, as a user would; returns the exit code."""
        up = self._up
        if up is None:
            return 0
        if up.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                up.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(up.wait(), 60)
            except TimeoutError:
                up.kill()
                await up.wait()
        assert up.returncode is not None
        return up.returncode

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def page(self) -> RunFile:
        """What `up` says of itself."""
        page = RunDir(self.data).read()
        if page is None:
            raise Void("the fleet has no page")
        return page

    def pid(self, name: str) -> int:
        """The process now running under ``name``."""
        pid = self.page().processes[name].pid
        if pid is None:
            raise Void(f"{name} is not running")
        return pid

    def ends(self) -> list[str]:
        """What `up` said of processes that ended, and when."""
        lines = (self.data / "up.log").read_text().splitlines()
        return [line for line in lines if " ended" in line]

    async def kill(self, name: str) -> None:
        """SIGKILL, and see that it is gone: a fault that did not happen proves nothing."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not _runs(pid), 5, f"{name} did not die")

    async def freeze(self, name: str) -> int:
        """SIGSTOP, and see that it stopped; returns the pid for ``thaw``."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5, "not frozen")
        return pid

    def thaw(self, pid: int) -> None:
        """SIGCONT."""
        os.kill(pid, signal.SIGCONT)

    async def history(self, stream: str) -> list[Decoded]:
        """Every message that a stream holds now, oldest first."""
        page = self.page()
        key = Path(page.keys_dir) / "history.nk"
        async with History(page.nats_url, key_file=key) as history:
            return [decode_stored(stored) async for stored in history.read(stream)]

    async def status(self) -> dict[str, Any]:
        """What `switchyard status --json` says."""
        done = await asyncio.create_subprocess_exec(
            *SWITCHYARD,
            *("status", "--json", "--data", str(self.data)),
            cwd=self.data,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await done.communicate()
        found: dict[str, Any] = json.loads(out or b"{}")
        return found

    async def counters(self, instance: str) -> dict[str, int]:
        """What one process has counted."""
        for component in (await self.status())["components"]:
            if component["instance"] == instance:
                counted: dict[str, int] = component["counters"]
                return counted
        raise Void(f"{instance} does not answer")

    def client(self) -> httpx.AsyncClient:
        """An HTTP client for the gateway, with as many connections as a proof wants."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool], within_s: float, otherwise: str) -> None:
    """Wait for a condition; raises ``Void`` when it does not come true."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise Void(otherwise)
        await asyncio.sleep(0.02)
