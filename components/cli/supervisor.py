"""Child processes that are kept running, and ended in order."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from components.cli.errors import CommandFailed
from components.cli.plan import Planned
from components.cli.restarts import Restart, Restarts
from components.cli.rundir import RunDir

#: The console script in other words; -P keeps a working folder's `schemas.py` out.
COMMAND: Final = (sys.executable, "-P", "-m", "components.cli")
#: Exit codes that another start would only repeat (``components.host.errors``).
HOPELESS: Final = frozenset({69, 78})
#: What a process may take to end beyond its own drain.
STOP_MARGIN_S: Final = 10.0


@dataclass(slots=True)
class Child:
    """One planned process: its present life, if it has one."""

    planned: Planned
    restarts: Restarts = field(default_factory=Restarts)
    process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


class Supervisor:
    """Starts processes, starts them again when they die, ends them.

    ``say`` gets a line for whoever watches; ``on_change`` is called when a pid changed. Until
    ``started`` was called a process that cannot start at all is not tried again: ``failure`` gets
    it.
    """

    def __init__(
        self,
        processes: Iterable[Planned],
        run_dir: RunDir,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        on_change: Callable[[], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.children = {planned.instance: Child(planned) for planned in processes}
        self.failure: asyncio.Future[CommandFailed] = asyncio.get_running_loop().create_future()
        self._run_dir = run_dir
        self._environment = environment
        self._say = say
        self._on_change = on_change
        self._command = tuple(command)
        self._starting = True
        self._stopping = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start all at once; they wait for each other by themselves."""
        for child in self.children.values():
            keeper = asyncio.create_task(self._keep(child), name=child.planned.instance)
            keeper.add_done_callback(self._kept)
            self._keepers.append(keeper)

    def started(self) -> None:
        """Everything ran: from now on whatever dies is started again for ever."""
        self._starting = False

    async def stop(self, order: Sequence[str], drain_s: float) -> None:
        """SIGTERM component by component in this order, SIGKILL for who is not gone in time."""
        self._stopping.set()
        for component in order:
            await self._end([c for c in self._alive() if c.planned.component == component], drain_s)
        await self._end(self._alive(), drain_s)
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def kill(self) -> None:
        """SIGKILL to all that live."""
        self._stopping.set()
        self._signal(self._alive(), signal.SIGKILL)

    def _alive(self) -> list[Child]:
        return [child for child in self.children.values() if child.process is not None]

    async def _end(self, children: Sequence[Child], drain_s: float) -> None:
        self._signal(children, signal.SIGTERM)
        if not await self._gone(children, drain_s + STOP_MARGIN_S):
            late = [child for child in children if child.process is not None]
            names = ", ".join(child.planned.instance for child in late)
            self._say(f"{names} did not end in time and is killed")
            self._signal(late, signal.SIGKILL)
            await self._gone(late, STOP_MARGIN_S)

    async def _gone(self, children: Sequence[Child], within_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for child in children:
                    if child.process is not None:
                        await child.process.wait()
                return True
        return False

    def _signal(self, children: Sequence[Child], what: signal.Signals) -> None:
        for child in children:
            if child.process is not None:
                with suppress(ProcessLookupError):
                    child.process.send_signal(what)

    async def _keep(self, child: Child) -> None:
        while not self._stopping.is_set():
            child.restarts.on_start(time.monotonic())
            child.process = await self._spawn(child.planned)
            if self._stopping.is_set():
                self._signal([child], signal.SIGTERM)  # asked for while it was being born
            self._on_change()
            code = await child.process.wait()
            child.process = None
            if self._stopping.is_set():
                return
            self._on_change()
            restart = child.restarts.on_exit(time.monotonic())
            self._tell(child, code, restart)
            with suppress(TimeoutError):
                async with asyncio.timeout(restart.after_s):
                    await self._stopping.wait()

    async def _spawn(self, planned: Planned) -> asyncio.subprocess.Process:
        log = self._run_dir.open_log(planned.instance)
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                planned.component,
                *planned.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environment, **dict(planned.environment)},
                # A Ctrl-C in the terminal is for us: we end the others in order.
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _tell(self, child: Child, code: int, restart: Restart) -> None:
        name = child.planned.instance
        log = self._run_dir.log_file(name)
        how = ended(code)
        if self._starting and (code in HOPELESS or restart.is_crash_loop):
            words = self._run_dir.last_words(name)
            message = f"{name} cannot start: it {how}. It said ({log}):\n{words or '(nothing)'}"
            if not self.failure.done():
                self.failure.set_result(CommandFailed(message, code if code in HOPELESS else 1))
        elif restart.is_crash_loop and restart.is_news:
            self._say(f"{name} {how}, for the {restart.deaths}th time in a row; see {log}")
        elif restart.is_news:
            self._say(f"{name} {how}; started again")

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """A keeper only ends when stopping; anything else is our own bug, and must not hide."""
        if keeper.cancelled() or self.failure.done():
            return
        if error := keeper.exception():
            self.failure.set_result(CommandFailed(f"cannot run {keeper.get_name()}: {error!r}"))


def ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
