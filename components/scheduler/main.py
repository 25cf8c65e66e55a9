"""``switchyard scheduler``."""

from collections.abc import Mapping

from components.host.process import run
from components.scheduler.service import Scheduler
from components.scheduler.settings import SchedulerSettings


def main(overrides: Mapping[str, object]) -> int:
    """Run a scheduler until told to stop; returns the exit code."""
    return run("scheduler", Scheduler, SchedulerSettings, overrides)
