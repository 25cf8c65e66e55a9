"""``switchyard router``."""

from collections.abc import Mapping

from components.host.process import run
from components.router.service import Router
from components.router.settings import RouterSettings


def main(overrides: Mapping[str, object]) -> int:
    """Run a router until told to stop; returns the exit code."""
    return run("router", Router, RouterSettings, overrides)
