"""Processes are kept running and ended in order. The processes here are real, and small."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from components.cli.plan import Planned
from components.cli.rundir import RunDir
from components.cli.supervisor import Supervisor, ended

#: Argument 1 says what it is, 2 what it does. It writes each life and its end into the log.
CHILD = """
import os, signal, sys, time
name, does = sys.argv[1:3]
print(f"{name} lives", flush=True)
if does.startswith("exit"):
    sys.exit(int(does.removeprefix("exit")))
def end(*_):
    print(f"{name} drains", flush=True)
    with open(os.environ["ORDER"], "a") as order:
        order.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if does == "stubborn" else end)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("armed", flush=True)
time.sleep(120)
"""
Said = list[str]


class Run:
    """A supervisor of small children, and what it said."""

    def __init__(self, folder: Path, **children: str) -> None:
        self.said: Said = []
        self.changes = 0
        self.dir = RunDir(folder)
        self.order = folder / "order"
        processes = [Planned(name, f"{name}-0", (does,)) for name, does in children.items()]
        self.supervisor = Supervisor(
            processes,
            self.dir,
            {**os.environ, "ORDER": str(self.order)},
            self.said.append,
            self._changed,
            command=(sys.executable, "-S", "-c", CHILD),
        )

    def _changed(self) -> None:
        self.changes += 1

    def pid(self, name: str) -> int | None:
        return self.supervisor.children[f"{name}-0"].pid

    def log(self, name: str) -> str:
        file = self.dir.log_file(f"{name}-0")
        return file.read_text() if file.exists() else ""

    async def until(self, condition: Callable[[], bool], within_s: float = 10.0) -> None:
        deadline_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline_s, (self.said, self.log("worker"))
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(folder: Path, **children: str) -> AsyncIterator[Run]:
    run = Run(folder, **children)
    run.supervisor.start()
    try:
        yield run
    finally:
        run.supervisor.kill()
        await run.supervisor.stop((), 0.0)


async def test_a_killed_process_is_started_again(tmp_path: Path):
    async with running(tmp_path, worker="serve") as run:
        run.supervisor.started()
        await run.until(lambda: "armed" in run.log("worker"))
        first = run.pid("worker")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await run.until(lambda: run.log("worker").count("armed") == 2)
        assert run.pid("worker") not in {first, None}
        assert run.said == ["worker-0 was ended by SIGKILL; started again"]
        assert run.changes >= 3  # born, dead, born: the page was written each time


async def test_processes_are_ended_in_the_order_given(tmp_path: Path):
    async with running(tmp_path, worker="serve", router="serve", gateway="serve") as run:
        names = ("worker", "router", "gateway")
        await run.until(lambda: all("armed" in run.log(name) for name in names))
        await run.supervisor.stop(("gateway", "router", "worker"), 5.0)
        assert run.order.read_text().split() == ["gateway", "router", "worker"]
        assert [run.pid(name) for name in names] == [None, None, None]
        assert run.said == []


async def test_who_does_not_end_in_time_is_killed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("components.cli.supervisor.STOP_MARGIN_S", 0.2)
    async with running(tmp_path, worker="stubborn") as run:
        await run.until(lambda: "armed" in run.log("worker"))
        await run.supervisor.stop(("worker",), 0.1)
        assert run.pid("worker") is None
        assert run.said == ["worker-0 did not end in time and is killed"]


async def test_a_process_that_cannot_start_fails_the_start_in_its_own_words(tmp_path: Path):
    async with running(tmp_path, gateway="exit78", worker="serve") as run:
        failure = await asyncio.wait_for(run.supervisor.failure, 10)
        assert failure.exit_code == 78
        assert "gateway-0 cannot start: it ended with 78" in str(failure)
        assert "gateway lives" in str(failure)


async def test_a_process_that_keeps_dying_fails_the_start(tmp_path: Path):
    async with running(tmp_path, worker="exit70") as run:
        failure = await asyncio.wait_for(run.supervisor.failure, 10)
        assert failure.exit_code == 1
        assert run.log("worker").count("lives") == 5


async def test_after_the_start_a_crash_loop_is_told_and_gone_on_with(tmp_path: Path):
    async with running(tmp_path, worker="exit78") as run:
        run.supervisor.started()
        await run.until(lambda: any("5th time in a row" in line for line in run.said))
        assert not run.supervisor.failure.done()
        await run.until(lambda: run.log("worker").count("lives") >= 6)


async def test_a_stop_during_the_pause_before_a_restart_does_not_wait_for_it(tmp_path: Path):
    async with running(tmp_path, worker="exit70") as run:
        run.supervisor.started()
        await run.until(lambda: run.log("worker").count("lives") >= 6)  # pauses are over 1 s by now
        lives, began_s = run.log("worker").count("lives"), time.monotonic()
        await run.supervisor.stop(("worker",), 5.0)
        assert time.monotonic() - began_s < 1.0
        assert run.log("worker").count("lives") - lives <= 1


async def test_a_ctrl_c_in_the_terminal_does_not_reach_the_children(tmp_path: Path):
    async with running(tmp_path, worker="serve") as run:
        await run.until(lambda: "armed" in run.log("worker"))
        pid = run.pid("worker")
        assert pid is not None
        assert os.getpgid(pid) != os.getpgid(0)


def test_an_exit_code_is_told_in_words():
    assert ended(70) == "ended with 70"
    assert ended(-9) == "was ended by SIGKILL"
    assert ended(-250) == "was ended by signal 250"
