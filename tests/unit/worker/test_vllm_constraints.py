"""Constraints are tried out in a process of their own, and go on where an attempt stopped."""

import asyncio
import sys
from types import SimpleNamespace

import pytest

from components.worker.vllm import constraints
from components.worker.vllm.backend import BadParameter, BadSequence, Constraint
from components.worker.vllm.constraints import Rehearsals, Spec, rehearsal
from components.worker.vllm.grammar_seam import EMITTED, SeamError, going_on
from tests.support.nats import until

WANTED = Constraint("regex", "a+", "structured_outputs")
#: Says yes, dies of bombs, and counts in its answers' file how often it was started and asked.
CHILD = """
import json, os, sys, time
log = open(sys.argv[1], "a", buffering=1)
log.write("started " + json.loads(sys.stdin.readline()) + "\\n")
print("ready", flush=True)
for line in sys.stdin:
    kind, value = json.loads(line)
    log.write(value + "\\n")
    if value == "bomb":
        os.kill(os.getpid(), 27)
    if value == "slow":
        time.sleep(60)
    print("no" if value == "odd" else "yes", flush=True)
"""


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def rehearsals(log):
    made = Rehearsals(lambda: "tokens", [sys.executable, "-c", CHILD, str(log)])
    yield made
    made.stop()
    made._end()


async def test_what_compiles_goes_on_and_is_not_tried_again(rehearsals, log):
    for _ in range(3):
        await rehearsals.check(WANTED, Spec("regex", "a+"))
    await rehearsals.check(WANTED, Spec("regex", "odd"))  # vLLM says why not
    assert log.read_text().split("\n") == ["started tokens", "a+", "odd", ""]


async def test_what_ends_the_rehearsal_is_refused_and_the_next_one_is_not(rehearsals, log):
    for _ in range(2):
        with pytest.raises(BadParameter, match="structured_outputs"):
            await rehearsals.check(WANTED, Spec("regex", "bomb"))
    await rehearsals.check(WANTED, Spec("regex", "a+"))
    assert log.read_text().split() == ["started", "tokens", "bomb", "started", "tokens", "a+"]


async def test_one_is_tried_at_a_time_and_only_so_many_wait(rehearsals, log, monkeypatch):
    monkeypatch.setattr(constraints, "WAITING_MAX", 3)
    specs = [Spec("regex", "a" * n) for n in range(1, 6)]
    results = await asyncio.gather(
        *(rehearsals.check(WANTED, spec) for spec in specs), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None)] * 3 + [BadSequence] * 2
    assert log.read_text().split()[2:] == ["a", "aa", "aaa"]


async def test_verdicts_are_forgotten_when_there_are_many(rehearsals, log, monkeypatch):
    monkeypatch.setattr(constraints, "VERDICTS_MAX", 2)
    for value in ("a", "b", "a", "c", "a", "b"):
        await rehearsals.check(WANTED, Spec("regex", value))
    assert log.read_text().split()[2:] == ["a", "b", "c", "b"]


async def test_a_stop_ends_what_is_being_tried(rehearsals, log):
    trying = asyncio.create_task(rehearsals.check(WANTED, Spec("regex", "slow")))
    await until(lambda: log.exists() and "slow" in log.read_text(), "its turn", 10.0)
    rehearsals.stop()
    with pytest.raises(BadSequence, match="stops"):
        await trying


async def test_without_its_process_constrained_jobs_fail_and_are_not_the_clients_fault():
    rehearsals = Rehearsals(lambda: "tokens", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(BadSequence, match="exit code 3") as refused:
        await rehearsals.check(WANTED, Spec("regex", "a+"))
    assert not isinstance(refused.value, BadParameter)


def test_the_process_is_our_own_module():
    start = "from components.worker.vllm.rehearsal import main; main(2.5)"
    assert rehearsal(2.5)[1:] == ["-P", "-c", start]


# The seam


class Grammar:
    """Takes every id but 13."""

    def __init__(self):
        self.taken = []

    def accept_tokens(self, request_id, ids):
        self.taken += ids
        return 13 not in ids


def fed(prompt, emitted, *, starts_at=0):
    """The grammar of a request with that prompt; ``starts_at``: after so many emitted ids."""
    grammar, structured = Grammar(), SimpleNamespace(reasoning_ended=None)
    request = SimpleNamespace(
        request_id="r1",
        prompt_token_ids=prompt,
        sampling_params=SimpleNamespace(extra_args=emitted and {EMITTED: emitted}),
        structured_output_request=structured,
    )
    manager = SimpleNamespace(
        _get_constraint_bounds=lambda request, ids, *, spec_tokens_committed: SimpleNamespace(
            grammar_start=starts_at
        )
    )
    assert going_on(lambda manager, request: grammar)(manager, request) is grammar
    return grammar.taken, structured.reasoning_ended


def test_a_grammar_has_read_what_was_emitted():
    assert fed([1, 2, 3, 4], 2) == ([3, 4], True)
    assert fed([1, 2, 3, 4], None) == ([], None)


def test_it_begins_where_the_reasoning_ended():
    assert fed([1, 2, 3, 4], 3, starts_at=2) == ([4], True)
    assert fed([1, 2, 3, 4], 3, starts_at=3) == ([], True)
    assert fed([1, 2, 3, 4], 3, starts_at=4) == ([], None)


def test_what_breaks_the_constraint_ends_the_request():
    with pytest.raises(SeamError):
        fed([1, 13], 1)
