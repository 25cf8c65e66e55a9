"""``switchyard gateway``."""

from collections.abc import Mapping

from components.gateway.service import Gateway
from components.gateway.settings import GatewaySettings
from components.host.process import run


def main(overrides: Mapping[str, object]) -> int:
    """Run a gateway until told to stop; returns the exit code."""
    return run("gateway", Gateway, GatewaySettings, overrides)
