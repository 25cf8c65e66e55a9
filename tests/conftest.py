"""What holds for every test: the markers, and how hypothesis looks for examples."""

import importlib.util
import os
import shutil

import pytest
from hypothesis import settings

pytest_plugins = ["tests.support.nats"]

# Examples are the same on every run in CI; elsewhere each run tries new ones. No deadline: two busy
# cores make one example slow without making it wrong (the timeout of a test bounds it as a whole).
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("local", deadline=None, max_examples=50)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine or this run is not for."""
    absent = {
        "engine": None if importlib.util.find_spec("vllm") else "no vLLM in this environment",
        "gpu": None if shutil.which("nvidia-smi") else "no NVIDIA GPU on this machine",
        "slow": None if config.getoption("--slow") else "slow: run with --slow",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
