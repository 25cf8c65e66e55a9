"""The page of proofs itself: a bar missed is FAIL, a skip does not hold, a control must fail."""

from collections.abc import Awaitable
from pathlib import Path

import pytest

from tests.show.proof import Figure, Proof, Run, Skip, Void, show


def a_proof(holds: bool = True, error: Exception | None = None) -> Proof:
    async def measure(run: Run) -> Figure:
        if error:
            raise error
        return Figure("1", holds and run.fault is None)

    return Proof("p", "a claim", "a bar", measure, "a_fault", 1)


@pytest.mark.parametrize(
    ("proof", "said", "code"),
    [
        (a_proof(), "1 of 1 hold", 0),
        (a_proof(holds=False), "0 of 1 hold", 1),
        (a_proof(error=Skip("no disk")), "0 of 1 hold", 0),
        (a_proof(error=Void("nothing was killed")), "0 of 1 hold", 1),
        (a_proof(error=ValueError("oops")), "0 of 1 hold", 1),
    ],
)
def test_what_holds_is_counted(
    proof: Proof, said: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show("page", [proof], tmp_path, []) == code
    assert said in capsys.readouterr().out


def test_a_control_that_passes_is_a_failure(tmp_path: Path) -> None:
    def without_its_fault(run: Run) -> Awaitable[Figure]:
        return a_proof().measure(Run(None, run.folder, quick=False))

    blind = Proof("p", "c", "b", without_its_fault, "f", 1)
    assert show("page", [blind], tmp_path, ["--control"]) == 1
    assert show("page", [a_proof()], tmp_path, ["--control"]) == 0
    assert show("page", [a_proof(error=Void("no load"))], tmp_path, ["--control"]) == 1
