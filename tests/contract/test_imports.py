"""The arrows of import hold: each layer knows the one below, and no component another one.

The contracts stand in pyproject.toml; here they are kept over the code as it is, and shown to
notice an arrow that points the wrong way.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    """What the linter says of the packages in ``folder``."""
    command = [LINTER, "--config", folder / "pyproject.toml", "--no-cache"]
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_arrow_points_the_way_it_should():
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and their contracts, to be spoiled."""
    folder = tmp_path_factory.mktemp("spoiled")
    for package in ("schemas", "bus", "components"):
        leave = shutil.ignore_patterns("__pycache__", "*.json")
        shutil.copytree(ROOT / package, folder / package, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        # API to service: they meet on subjects.
        (
            "components/gateway/node_api.py",
            "import components.registry.nodes",
            "components.gateway -> components.registry",
        ),
        # Below to above.
        ("schemas/nodes.py", "import bus.records", "schemas.nodes -> bus.records"),
        ("bus/records.py", "import components.host.host", "bus.records -> components.host.host"),
        # What decides knows no store.
        ("components/registry/core.py", "import bus.records", "components.registry.core"),
    ],
)
def test_an_arrow_that_points_elsewhere_is_named(copy: Path, file: str, line: str, says: str):
    spoiled = copy / file
    whole = spoiled.read_text()
    spoiled.write_text(f"{whole}\n\n{line}\n")
    try:
        done = linted(copy)
    finally:
        spoiled.write_text(whole)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    assert says in done.stdout.replace("is not allowed to import", "->"), done.stdout
