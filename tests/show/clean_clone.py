"""What a newcomer does: clone, `make up`, the README's curl, `make test`."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

from tests.show.fleet import until
from tests.show.proof import Figure, Run, Void
from tests.show.python import PLANTED, REPOSITORY

T = TypeVar("T")
FIRST_S, SECOND_S = 60.0, 15.0


@contextlib.asynccontextmanager
async def a_clone() -> AsyncIterator[Path]:
    """What is committed, in a folder outside this tree; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="clone-") as folder:
        path = Path(folder) / "switchyard"
        await _run(None, "git", "clone", "--quiet", str(REPOSITORY), str(path))
        yield path


async def _run(cwd: Path | None, *command: str, environment: dict[str, str] | None = None) -> str:
    done = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await done.communicate()
    if done.returncode != 0:
        raise Void(f"{' '.join(command[:3])} failed: {out.decode()[-300:]}")
    return out.decode()


def _environment(fault: str | None) -> dict[str, str]:
    # A `make` inside a `make` says on standard output which folder it enters.
    dropped = ("SWITCHYARD_", "MAKE", "MFLAGS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return kept | ({"PYTHONPATH": str(PLANTED), "PLANTED_FAULT": fault} if fault else {})


async def up_twice_and_curl(run: Run) -> Figure:
    """`make up` on a clean clone, again, and the README's curl against it."""
    async with a_clone() as clone:
        readme = (clone / "README.md").read_text()
        curl = re.search(r"^curl -N .*?(?=^```)", readme, re.DOTALL | re.MULTILINE)
        if curl is None:
            raise Void("the README has no curl")
        # Everything is fetched once beforehand; the first figure is without the downloads.
        await _run(clone, "make", "install", environment=_environment(None))
        shutil.rmtree(clone / ".venv")
        times, chunks = [], 0
        for _ in range(2):
            ready_s, chunks = await _up_once(clone, curl[0], run.fault)
            times.append(ready_s)
    holds = times[0] < FIRST_S and times[1] < SECOND_S and chunks > 2
    text = f"ready after {times[0]:.1f} s, then {times[1]:.1f} s; curl streamed {chunks} chunks"
    return Figure(text, holds, {"ready_s": times})


async def _up_once(clone: Path, curl: str, fault: str | None) -> tuple[float, int]:
    began = time.monotonic()
    data = clone / "data"
    up = await asyncio.create_subprocess_exec(
        *("make", "up", f"ARGS=--port 0 --udp-port 0 --data {data}"),
        cwd=clone,
        env=_environment(fault),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert up.stdout is not None
    line = b""
    try:
        line = await _within(180, up.stdout.readline(), "`make up` did not say ready")
        ready_s = time.monotonic() - began
        if not line.startswith(b"ready "):
            raise Void(f"its first line is not ready but {line[:80]!r}")
        here = curl.replace("http://127.0.0.1:8000", line.split()[1].decode())
        out = await _within(60, _run(clone, "sh", "-c", here), "the curl did not end")
        return ready_s, out.count("data: {") if "data: [DONE]" in out else 0
    finally:
        if not line.startswith(b"ready "):
            os.killpg(up.pid, signal.SIGKILL)  # it may be anywhere on its way
        with contextlib.suppress(ProcessLookupError):
            os.killpg(up.pid, signal.SIGINT)
        # `make` goes at once; what it started drains, and says on its page when it is done.
        _ = await _within(60, up.wait(), "`make up` did not end")
        await until(lambda: not (data / "run.json").exists(), 60, "the yard did not stop")


async def _within(limit_s: float, work: Awaitable[T], otherwise: str) -> T:
    try:
        return await asyncio.wait_for(work, limit_s)
    except TimeoutError:
        raise Void(otherwise) from None


async def tests_twice(run: Run) -> Figure:
    """`make test` on a clean clone, twice in a row, with a real nats-server."""
    async with a_clone() as clone:
        await _run(clone, "make", "install", environment=_environment(None))
        closing = []
        for _ in range(1 if run.fault or run.quick else 2):
            done = await asyncio.create_subprocess_exec(
                *("make", "test"),
                cwd=clone,
                env=_environment(run.fault),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await done.communicate()
            summaries = re.findall(r"^=+ (.* in .*?) =+$", out.decode(), re.MULTILINE)
            failed = re.findall(r"^FAILED (\S+)", out.decode(), re.MULTILINE)
            line = summaries[-1] if summaries else "no closing line"
            closing.append((done.returncode, "; ".join([line, *failed[:3]])))
    text = "; ".join(f"exit {code}: {line}" for code, line in closing)
    holds = all(code == 0 and re.search(r"\d+ passed", line) for code, line in closing)
    return Figure(text, holds)
