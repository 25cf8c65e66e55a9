"""``switchyard registry``."""

from collections.abc import Mapping

from components.host.process import run
from components.registry.service import RegistryService
from components.registry.settings import RegistrySettings


def main(overrides: Mapping[str, object]) -> int:
    """Run a registry; returns the exit code."""
    return run("registry", RegistryService, RegistrySettings, overrides)
