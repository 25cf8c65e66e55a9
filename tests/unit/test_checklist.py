"""tests/checklist.toml answers every line of the seeds' checklist, and names only real tests."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOPICS = {"handoff", "state", "scheduling", "ingress", "operate", "breadth"}
DIFFERENT_BY_AN_ISSUE: set[str] = set()  # ids of the rows that an issue wants done otherwise

ROWS: list[dict[str, Any]] = tomllib.loads((ROOT / "tests/checklist.toml").read_text())["row"]


def seed_lines() -> list[tuple[str, str]]:
    """The id and title of every line that the seeds ask for."""
    text = (ROOT / "tests/data/seeds_checklist.txt").read_text()
    return re.findall(r"^(\d\.\d+) (.+)$", text, re.MULTILINE)


def collected_from(path: Path) -> set[str]:
    """`test_name` and `TestClass::test_name` of what pytest collects from this file."""
    if not (path.is_file() and path.name.startswith("test_")):
        return set()
    found = set()
    for node in ast.parse(path.read_text()).body:
        prefix, body = "", [node]
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            prefix, body = f"{node.name}::", node.body
        functions = [n for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        found |= {prefix + n.name for n in functions if n.name.startswith("test_")}
    return found


def is_real(test_id: str) -> bool:
    """Whether pytest knows this id; the parameters in brackets are not looked at."""
    file, _, name = test_id.partition("[")[0].partition("::")
    return file.startswith("tests/") and name in collected_from(ROOT / file)


def complaints(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row, apart from its id and title."""
    match {key: row[key] for key in row.keys() - {"id", "title"}}:
        case {"planned": topic, **rest} if not rest:
            return [] if topic in TOPICS else [f"no topic: {topic}"]
        case {"different": why, **rest} if not rest and why.strip():
            return [] if row["id"] in DIFFERENT_BY_AN_ISSUE else ["no issue wants it different"]
        case {"tests": [*ids], **rest} if not rest and ids:
            return [f"no such test: {test_id}" for test_id in ids if not is_real(test_id)]
    return ["not exactly one of tests, planned, different"]


def test_every_line_of_the_seeds_has_exactly_one_row_with_its_title():
    assert Counter((row["id"], row["title"]) for row in ROWS) == Counter(seed_lines())


def test_the_seeds_list_is_whole():
    per_seed = Counter(line_id.partition(".")[0] for line_id, _ in seed_lines())
    assert per_seed == {"0": 19, "1": 19, "2": 19, "3": 31, "4": 30}


def test_every_row_has_one_answer_and_it_holds():
    assert {row["id"]: found for row in ROWS if (found := complaints(row))} == {}


HERE = "tests/unit/test_checklist.py"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"planned": "state", "tests": [f"{HERE}::test_the_seeds_list_is_whole"]},
        {"planned": "some day"},
        {"different": "because we liked it better"},
        {"tests": []},
        {"tests": [HERE]},
        {"tests": [f"{HERE}::complaints"]},
        {"tests": [f"{HERE}::test_nothing"]},
        {"tests": ["tests/unit/test_nowhere.py::test_the_seeds_list_is_whole"]},
        {"proof": "trust us"},
    ],
    ids=str,
)
def test_an_answer_that_does_not_hold_is_named(answer: dict[str, Any]):
    assert complaints({"id": "0.1", "title": "any", **answer})


def test_a_row_may_name_tests_with_parameters():
    test_id = f"{HERE}::test_an_answer_that_does_not_hold_is_named[{{}}]"
    assert complaints({"id": "0.1", "title": "any", "tests": [test_id]}) == []
