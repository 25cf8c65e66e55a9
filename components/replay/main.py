"""``switchyard replay serve``."""

from collections.abc import Mapping

from components.host.process import run
from components.replay.service import ReplayService
from components.replay.settings import ReplaySettings


def main(overrides: Mapping[str, object]) -> int:
    """Run a reader of the past; returns the exit code."""
    return run("replay", ReplayService, ReplaySettings, overrides)
