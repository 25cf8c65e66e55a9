"""One tiny model for all tests here, and what real engines need to share two cores."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Everything here needs vLLM, has minutes for it, and is not to blame for its warnings."""
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(300))
            item.add_marker(pytest.mark.filterwarnings("ignore:::vllm"))
            for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(
                pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A directory with the tiny model."""
    from components.worker.vllm.tiny_model import build  # noqa: PLC0415

    directory: Path = tmp_path_factory.mktemp("models") / "tiny"
    build(directory)
    return directory
