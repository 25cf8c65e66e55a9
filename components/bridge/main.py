"""``switchyard bridge``."""

from collections.abc import Mapping

from components.bridge.service import BridgeService
from components.bridge.settings import BridgeSettings
from components.host.process import run


def main(overrides: Mapping[str, object]) -> int:
    """Run a bridge; returns the exit code."""
    return run("bridge", BridgeService, BridgeSettings, overrides)
