"""``switchyard worker``."""

from collections.abc import Mapping

from components.host.process import run
from components.worker.service import Worker
from components.worker.settings import WorkerSettings


def main(overrides: Mapping[str, object]) -> int:
    """Run a worker until told to stop; returns the exit code."""
    return run("worker", Worker, WorkerSettings, overrides)
