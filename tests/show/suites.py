"""Test suites as proofs: pytest's own closing line is the figure."""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping

from tests.show.fleet import PLANTED, REPOSITORY
from tests.show.proof import Figure, Run, Skip, Void

_COUNTS = re.compile(r"(\d+) (passed|failed|error|errors|skipped)\b")


def suite(*paths: str, at_least: int) -> Callable[[Run], Awaitable[Figure]]:
    """A proof that holds when these pass, none fails, and there are at least so many of them."""

    async def measure(run: Run) -> Figure:
        counts, last = await _run(paths, run.fault)
        passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
        bad = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
        if not passed and not bad:
            if skipped:
                raise Skip(f"{skipped} tests cannot run here")
            raise Void(f"no test ran: {last}")
        text = f"{passed} passed, {bad} failed" + (f", {skipped} skipped" if skipped else "")
        return Figure(text, passed >= at_least and not bad, dict(counts))

    return measure


async def _run(paths: tuple[str, ...], fault: str | None) -> tuple[Mapping[str, int], str]:
    environment = dict(os.environ)
    if fault:
        path = os.pathsep.join(filter(None, (str(PLANTED), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "PLANTED_FAULT": fault}
    pytest = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths),
        cwd=REPOSITORY,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await pytest.communicate()
    finally:
        if pytest.returncode is None:
            pytest.kill()
            await pytest.wait()
    lines = out.decode().strip().splitlines() or [""]
    return {what: int(count) for count, what in _COUNTS.findall(lines[-1])}, lines[-1]
