"""Cores, policies and the domain decide from what they are given, and so can be replayed.

What they import is kept by the contracts in pyproject.toml. Here is what needs no import.
"""

import ast
from pathlib import Path

import pytest

COMPONENTS = Path(__file__).parents[2] / "components"
PURE = ["*/core.py", "*/policies/**/*.py", "domain/**/*.py"]
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


def test_what_decides_calls_nothing_that_a_replay_could_not_repeat():
    files = {file for pattern in PURE for file in COMPONENTS.glob(pattern)}
    found = {str(file): impurities(file.read_text()) for file in sorted(files)}
    assert {file: calls for file, calls in found.items() if calls} == {}


@pytest.mark.parametrize("name", IMPURE)
def test_an_impure_call_is_noticed(name: str):
    assert impurities(f"def decide(x):\n    return {name}(x)\n")
    assert not impurities(f"def decide(self, x):\n    return self.{name}(x)\n")
