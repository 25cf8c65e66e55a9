"""Our import names are plain words: schemas, bus, components. Four guards make that safe.

1. The distribution cannot be uploaded to an index, where the names would meet others.
2. It starts through its console script only, so a `schemas.py` in the working folder is not seen.
3. No other installed distribution brings a package of these names.
4. What others can see of a running system (subjects, environment variables, loggers) has its name.
"""

import ast
import importlib.metadata
import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import subjects

ROOT = Path(__file__).parents[2]
OURS = ["schemas", "bus", "components"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Names that others gave: the seed's gateway reads these, and OpenTelemetry, NATS and CUDA those.
FOREIGN_VARIABLES = ("VLLM_", "OTEL_", "NATS_URL", "CUDA_VISIBLE_DEVICES")


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in OURS:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield file.relative_to(ROOT), ast.parse(file.read_text())


def literal(node: ast.AST) -> str | None:
    """The text of a string literal, of an f-string only its head."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(head)), *_]):
            return head
    return None


# --------------------------------------------------------------------------------- 1. no upload


def test_the_distribution_is_refused_by_an_index():
    assert "Private :: Do Not Upload" in PROJECT["classifiers"]
    installed = importlib.metadata.metadata("switchyard")
    assert "Private :: Do Not Upload" in installed.get_all("Classifier", [])


# ------------------------------------------------------------------------- 2. one way to start


def test_the_console_script_is_the_only_way_in():
    assert PROJECT["scripts"] == {"switchyard": "components.cli.main:main"}
    started = [(file, tree) for file, tree in sources() if file.is_relative_to("components")]
    # What `up` starts its processes with, always under `python -P`.
    mains = [str(file) for file, _ in started if file.name == "__main__.py"]
    assert mains == ["components/cli/__main__.py"]
    runs_itself = [
        f"{file}:{node.lineno}"
        for file, tree in started
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "__name__"
    ]
    assert runs_itself == []


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A working folder with modules of our names that end whoever imports them."""
    for name in OURS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the decoy {name}.py came first')")
    return tmp_path


def test_a_decoy_in_the_working_folder_is_not_imported_by_python_p(decoys: Path):
    command = [sys.executable, "-P", "-c", f"import {', '.join(OURS)}"]
    found = subprocess.run(command, cwd=decoys, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_decoy_in_the_working_folder_is_not_imported_by_the_console_script(decoys: Path):
    script = Path(sys.executable).with_name("switchyard")
    said = subprocess.run(
        [script, "--version"], cwd=decoys, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.split()[-1] == PROJECT["version"]


# --------------------------------------------------------------------------------- 3. one owner


@pytest.mark.parametrize("name", OURS)
def test_no_other_distribution_owns_our_names(name: str):
    # An editable install lists no packages, a wheel lists ours: nobody else may appear either way.
    owners = importlib.metadata.packages_distributions().get(name, [])
    assert set(owners) <= {"switchyard"}
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert Path(str(spec.origin)).parents[1] == ROOT


# ------------------------------------------------------------------------- 4. the product's name


def test_subjects_carry_the_products_name():
    made = {}
    for name, function in inspect.getmembers(subjects, inspect.isfunction):
        types = list(inspect.get_annotations(function).values())
        own = function.__module__ == subjects.__name__ and not name.startswith("_")
        if own and set(types) == {str}:  # takes names, gives a subject
            made[name] = function(*["x"] * (len(types) - 1))
    assert made
    assert {name: text for name, text in made.items() if not text.startswith("yard.")} == {}


def test_components_write_no_subject_by_hand():
    subject = re.compile(r"^(yard\.)?(evt|cmd|ask|sig|out)\.[a-z>*]")
    found = [
        f"{file}: {text}"
        for file, tree in sources()
        for node in ast.walk(tree)
        if file.is_relative_to("components") and (text := literal(node)) and subject.match(text)
    ]
    assert found == []


def asked_variable(node: ast.AST) -> str | None:
    """The name in os.environ["NAME"], os.environ.get("NAME"), os.getenv("NAME")."""
    match node:
        case ast.Subscript(value=place, slice=key) if ast.unparse(place).endswith("environ"):
            return literal(key)
        case ast.Call(func=called, args=[key, *_]) if re.search(
            r"(environ\.\w+|getenv)$", ast.unparse(called)
        ):
            return literal(key)
    return None


def test_environment_variables_carry_the_products_name():
    allowed = ("SWITCHYARD_", *FOREIGN_VARIABLES)
    found = [
        f"{file}: {name}"
        for file, tree in sources()
        for node in ast.walk(tree)
        if (name := asked_variable(node)) and not name.startswith(allowed)
    ]
    assert found == []


def test_loggers_carry_the_products_name():
    # __name__ would be a plain word again: "components.router.service".
    found = [
        f"{file}:{node.lineno}"
        for file, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("getLogger", "get_logger"))
        and node.args  # without a name it is the root, where handlers are put
        and not (literal(node.args[0]) or "").startswith("switchyard")
    ]
    assert found == []
