"""One `up` from the first look at its ports to the last process that ended."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from components.cli import connectors, detach, keyring, ports, probe
from components.cli.engine_options import as_assignments, engine_args, engine_of, fleet_of
from components.cli.errors import CommandFailed
from components.cli.own_nats import OwnNats, create_streams
from components.cli.plan import STOP_ORDER, Planned, planned
from components.cli.progress import Progress
from components.cli.rundir import RunDir, RunFile, RunningProcess, default_data_dir
from components.cli.settings import UpSettings
from components.cli.supervisor import Supervisor
from components.host.settings import HostSettings

POLL_S: Final = 0.05
LOOK_S: Final = 1.0
#: Requests are served, but somebody is not ready yet: for so long that is waited for.
STRAGGLERS_S: Final = 10.0
#: How often the history is asked after, and how long a server started anew has before that.
HISTORY_LOOK_S: Final = 5.0
MENDED_S: Final = 30.0
#: With less than that a server would only stop storing again.
FREE_BYTES_MIN: Final = 8 * 1024 * 1024
INTERRUPTED: Final = 130


@dataclass(slots=True)
class Stop:
    """Ctrl-C or SIGTERM: the first asks for a drain, the next for an end now."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    hurried: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.ask)

    def ask(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()


class Yard:
    """What `up` runs: a nats-server unless one is given, and the processes of the plan."""

    def __init__(
        self,
        settings: UpSettings,
        host_settings: HostSettings,
        config: Path | None,
        run_dir: RunDir,
        progress: Progress,
    ) -> None:
        """Raises ``CommandFailed`` (port taken), ``BadPlan`` (useless engines), ``BadSettings``."""
        self._settings = settings
        self._prefix = host_settings.subject_prefix
        self._drain_s = host_settings.drain_s
        self._config = config
        self._dir = run_dir
        self._progress = progress
        self._keys = settings.keys or (None if settings.nats else run_dir.keys)
        self._port = ports.choose(settings.host, settings.port, socket.SOCK_STREAM)
        self._udp_port = ports.choose(settings.host, settings.udp_port, socket.SOCK_DGRAM)
        self._host = ports.reachable(settings.host)
        arguments = engine_args(settings, config, os.environ)
        fleet = fleet_of(settings, arguments)
        self._plan = planned(
            fleet.engines,
            http=(settings.host, self._port),
            udp=(settings.host, self._udp_port),
            worker=worker_flags(settings, arguments),
            devices=fleet.devices,
            tp=fleet.tp,
            urls=fleet.urls,
            bridge=bridge_flags(settings),
        )
        #: Whom we run; the others of the plan only have keys, and join by themselves.
        self._own = tuple(p for p in self._plan if settings.workers or p.component != "worker")
        self._ranks = connectors.ranks_of(settings, config)
        self._nats: OwnNats | None = None
        self._nats_url = settings.nats or ""
        self._page: RunFile | None = None
        self._history_due_s = 0.0
        self._disk_full = False

    @property
    def url(self) -> str:
        return f"http://{ports.authority(self._host, self._port)}"

    async def live(self) -> int:
        """Start, say that it is ready, keep it running until a signal, end in order.

        Returns the exit code; raises ``CommandFailed`` when it cannot start or go on.
        """
        stop = Stop()
        stop.listen()
        async with AsyncExitStack() as running:
            running.callback(self._dir.clear)
            await self._start_bus(running)
            supervisor = await running.enter_async_context(self._processes(stop))
            timeout_s = self._settings.start_timeout_s
            if not await self._until(self._ready(), stop, supervisor, timeout_s):
                return INTERRUPTED
            supervisor.started()
            await self._announce()
            await self._until(self._look_after(supervisor), stop, supervisor)
            self._progress.step("draining, the gateway first")
        return INTERRUPTED if stop.hurried.is_set() else 0

    async def _start_bus(self, running: AsyncExitStack) -> None:
        if not self._settings.nats:
            instances = [(process.component, process.instance) for process in self._plan]
            instances += connectors.instances(self._plan, self._ranks)
            instances += keyring.clients(self._settings.clients)
            keys = self._keys or self._dir.keys
            self._nats = OwnNats(
                self._dir.nats,
                keys,
                instances,
                self._prefix,
                self._progress,
                self._settings.history,
            )
            self._nats_url = await running.enter_async_context(self._nats.running())
        else:
            self._progress.step("creating streams")
            await create_streams(
                self._nats_url,
                self._keys,
                self._prefix,
                self._settings.history,
                self._settings.history_replicas,
            )

    # The processes.

    @asynccontextmanager
    async def _processes(self, stop: Stop) -> AsyncIterator[Supervisor]:
        supervisor = Supervisor(
            [self._on_the_bus(process) for process in self._own],
            self._dir,
            environment(),
            say=self._progress.say,
            on_change=lambda: self._write_page(supervisor),
        )
        self._progress.step("starting processes")
        supervisor.start()
        try:
            yield supervisor
        finally:
            hurry = asyncio.create_task(_hurry(stop, supervisor))
            await supervisor.stop(STOP_ORDER, self._drain_s)
            hurry.cancel()
            await asyncio.gather(hurry, return_exceptions=True)

    def _on_the_bus(self, process: Planned) -> Planned:
        key_file = keyring.find(self._keys, process.component, process.instance)
        more = ["--instance", process.instance, "--nats", self._nats_url]
        more += ["--key-file", str(key_file)] if key_file else []
        if process.component == "worker":
            more += connectors.arguments(self._keys, process.instance, self._ranks)
        if process.component == "registry":
            more += ["--set", f"access_dir={self._dir.path / 'access'}"]
        if process.component == "replay":
            history_key = keyring.find(self._keys, keyring.HISTORY, keyring.HISTORY)
            more += ["--history-key-file", str(history_key)] if history_key else []
        more += ["--config", str(self._config)] if self._config else []
        return Planned(
            process.component,
            process.instance,
            (*process.arguments, *more),
            process.environment,
        )

    def _write_page(self, supervisor: Supervisor) -> None:
        processes = {
            name: RunningProcess(c.planned.component, c.pid, str(self._dir.log_file(name)))
            for name, c in supervisor.children.items()
        }
        if self._nats is not None:
            processes[self._nats.process.component] = self._nats.process
        page = RunFile(
            url=self.url,
            udp=ports.authority(self._host, self._udp_port),
            nats_url=self._nats_url,
            keys_dir=str(self._keys or ""),
            subject_prefix=self._prefix,
            pid=os.getpid(),
            drain_s=self._drain_s,
            processes=processes,
        )
        if page != self._page:
            self._dir.write(page)
            self._page = page

    async def _look_after(self, supervisor: Supervisor) -> None:
        """Keep logs bounded, and the page true of a nats-server that was started again."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._write_page(supervisor)
            await self._see_that_it_stores()
            for name in (*(process.instance for process in self._own), detach.LOG):
                self._dir.trim_log(name)

    async def _see_that_it_stores(self) -> None:
        """A server of ours that stores nothing although there is space again is started anew."""
        now_s = time.monotonic()
        if self._nats is None or now_s < self._history_due_s:
            return
        self._history_due_s = now_s + HISTORY_LOOK_S
        full = self._nats.free_bytes < FREE_BYTES_MIN
        if full and not self._disk_full:
            self._progress.say("the disk is full: requests go on, the history does not")
        self._disk_full = full
        if full:
            return
        key_file = keyring.find(self._keys, keyring.OPERATOR, keyring.OPERATOR)
        found = await probe.history(self._nats_url, key_file, self._prefix)
        if found is not None and found.state == "not_storing":
            await self._nats.mend(found.why)
            self._history_due_s = time.monotonic() + MENDED_S

    # Being ready.

    async def _ready(self) -> None:
        """Return when requests are served, and everyone is ready or it was said who is not."""
        if self._settings.workers:
            await self._served()
        until_s = time.monotonic() + STRAGGLERS_S
        while missing := await self._not_ready():
            if time.monotonic() > until_s:
                names = ", ".join(missing)
                self._progress.say(f"requests are served, but not ready: {names}")
                return
            self._progress.step(f"waiting for {', '.join(missing)}")
            await asyncio.sleep(POLL_S)

    async def _served(self) -> None:
        self._progress.step("waiting for the engines")
        while not await probe.takes_requests(self._host, self._port):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)  # what changes is in another process

    async def _not_ready(self) -> list[str]:
        key_file = keyring.find(self._keys, keyring.OPERATOR, keyring.OPERATOR)
        names = [process.instance for process in self._own]
        return await probe.not_ready(self._nats_url, key_file, self._prefix, names)

    async def _until(
        self,
        work: Coroutine[Any, Any, None],
        stop: Stop,
        supervisor: Supervisor,
        timeout_s: float | None = None,
    ) -> bool:
        """True when the work is done, False when a stop was asked for first.

        Raises ``CommandFailed`` when the supervisor gives up or the time is over.
        """
        working = asyncio.create_task(work)
        stopped = asyncio.create_task(stop.asked.wait())
        try:
            first: set[asyncio.Future[Any]] = {working, stopped, supervisor.failure}
            done, _ = await asyncio.wait(
                first, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if supervisor.failure in done:
                raise supervisor.failure.result()
            if not done:
                raise CommandFailed(
                    f"no request can be served after {timeout_s:g} s; not ready:"
                    f" {', '.join(await self._not_ready())}. The logs are in {self._dir.logs}"
                )
            if working in done:
                await working
            return working in done
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)

    async def _announce(self) -> None:
        self._progress.rest()
        print(f"ready {self.url}", flush=True)
        if not self._settings.workers:
            self._progress.show("No workers yet; each joins with: switchyard join ROLE")
            return
        listed = await probe.models(self._host, self._port)
        for line in what_to_try(self.url, listed[0] if listed else "MODEL", self._dir.path):
            self._progress.show(line)


async def _hurry(stop: Stop, supervisor: Supervisor) -> None:
    await stop.hurried.wait()
    supervisor.kill()


def worker_flags(settings: UpSettings, arguments: Mapping[str, object] | None = None) -> list[str]:
    """What every worker is told; what was not asked for stays as the worker has it.

    ``arguments`` are those of vLLM's engine.
    """
    asked = {
        "--engine": engine_of(settings),
        "--model": settings.model,
        "--profile": settings.profile,
        "--speed": settings.speed,
    }
    given = {flag: str(value) for flag, value in asked.items() if value is not None}
    words = [word for pair in given.items() for word in pair]
    return [*words, *as_assignments(arguments or {})]


def bridge_flags(settings: UpSettings) -> list[str]:
    return [] if settings.ping_port is None else ["--set", f"ping_port={settings.ping_port}"]


def environment() -> dict[str, str]:
    """Ours, and that nobody outlives us: if we are killed nobody ends them in order."""
    guard = {
        "SWITCHYARD_HOST_DIE_WITH_PARENT": "true",
        "SWITCHYARD_HOST_PARENT_PID": str(os.getpid()),
    }
    return {**os.environ, **guard}


def what_to_try(url: str, model: str, data_dir: Path) -> Iterator[str]:
    """Lines for a person who has just started a yard, to be copied as they are."""
    message = {"role": "user", "content": "Which track is free?"}
    body = json.dumps({"model": model, "stream": True, "messages": [message]})
    # In a fresh checkout we are in .venv/bin, which is on nobody's path.
    on_path = shutil.which("switchyard") is not None
    command = "switchyard" if on_path else str(Path(sys.executable).with_name("switchyard"))
    where = "" if data_dir == default_data_dir(os.environ, Path.home()) else f" --data {data_dir}"
    yield "Try:"
    yield f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
    yield f"  {command} status{where}"
    yield "Ctrl-C drains and ends everything."
