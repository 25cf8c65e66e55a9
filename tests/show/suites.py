"""Test suites as proofs: pytest's own closing line is the figure."""

import re
from collections.abc import Awaitable, Callable, Mapping

from tests.show.proof import Figure, Run, Skip, Void
from tests.show.python import python

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
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)
    _, out, err = await python(*words, fault=fault)
    lines = (out.strip() or err.strip()).splitlines() or [""]
    return {what: int(count) for count, what in _COUNTS.findall(lines[-1])}, lines[-1]
