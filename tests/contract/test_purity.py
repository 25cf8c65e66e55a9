"""Cores, policies and the domain decide from what they are given, and so can be replayed.

What they import is kept by the contracts in pyproject.toml. Here is what needs no import, and the
same for every other file that says of itself that it is pure.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

COMPONENTS = Path(__file__).parents[2] / "components"
PURE = ["*/core.py", "*/policies/**/*.py", "domain/**/*.py"]
CLAIM = re.compile(r"\bPure[.:]")
WORLD = {
    *("asyncio", "httpx", "nats", "os", "selectors", "signal", "socket", "subprocess", "threading"),
    *("logging", "random", "secrets", "tempfile", "time"),
}
IMPURE = {
    "open": "reads or writes",
    "input": "reads",
    "print": "writes",
    "breakpoint": "stops",
    "__import__": "imports behind the contracts' back",
    "eval": "runs data",
    "exec": "runs data",
    "id": "differs from run to run",
    "hash": "differs from run to run for text (PYTHONHASHSEED)",
}


def impurities(source: str) -> list[str]:
    """`line N: name, why` of every call to a built-in that makes a decision unrepeatable."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"line {call.lineno}: {call.func.id} {IMPURE[call.func.id]}"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in IMPURE
    ]


def claiming() -> Iterator[Path]:
    """Files whose first words say that they are pure."""
    for file in COMPONENTS.rglob("*.py"):
        if CLAIM.search(ast.get_docstring(ast.parse(file.read_text())) or ""):
            yield file


def imported(source: str) -> Iterator[str]:
    """Modules, but for those that only types need."""
    tree = ast.parse(source)
    of_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in of_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_who_claims_to_be_pure_reaches_for_no_clock_network_or_chance():
    files = sorted(claiming())
    assert len(files) > 10
    found = {str(f): WORLD & set(imported(f.read_text())) for f in files}
    assert {file: modules for file, modules in found.items() if modules} == {}


def test_what_decides_calls_nothing_that_a_replay_could_not_repeat():
    files = {file for pattern in PURE for file in COMPONENTS.glob(pattern)}
    found = {str(file): impurities(file.read_text()) for file in sorted(files)}
    assert {file: calls for file, calls in found.items() if calls} == {}


@pytest.mark.parametrize("name", IMPURE)
def test_an_impure_call_is_noticed(name: str):
    assert impurities(f"def decide(x):\n    return {name}(x)\n")
    assert not impurities(f"def decide(self, x):\n    return self.{name}(x)\n")
