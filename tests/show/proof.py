"""Claims, figures, bars: runs proofs and prints what holds.

A *proof* is an async function of a ``Run`` that measures and returns a ``Figure``. It raises
``Skip`` where this machine cannot show the claim (a skip does not hold), and ``Void`` when the run
was no test at all: the fault did not happen, the load was not there. A void run fails.
"""

import argparse
import asyncio
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Verdict = Literal["PASS", "FAIL", "SKIP"]


class Skip(Exception):
    """This machine cannot show the claim, and why."""


class Void(Exception):
    """The run was no test: what had to happen did not."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, in words, and whether it clears the bar."""

    text: str
    holds: bool
    data: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """How a proof runs: the fault to plant in the system, if any, and where to leave files."""

    fault: str | None
    folder: Path
    quick: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """One claim. ``fault`` names the planted fault for which it must print FAIL."""

    name: str
    claim: str
    bar: str
    measure: Callable[[Run], Awaitable[Figure]]
    fault: str
    about_s: int


@dataclass(frozen=True, slots=True)
class Line:
    """One printed line."""

    name: str
    claim: str
    figure: str
    bar: str
    verdict: Verdict
    took_s: float
    data: dict[str, object]
    #: False when nothing was measured: the run was void, crashed or did not end.
    sound: bool = True


async def run_one(proof: Proof, run: Run) -> Line:
    """Measure; whatever goes wrong is a verdict with a reason, never a crash of the page."""
    began = time.monotonic()
    data: dict[str, object] = {}
    verdict: Verdict = "FAIL"
    sound = True
    try:
        figure = await asyncio.wait_for(proof.measure(run), timeout=proof.about_s * 4 + 120)
        text, data = figure.text, figure.data
        verdict = "PASS" if figure.holds else "FAIL"
    except Skip as why:
        text, verdict = f"skipped: {why}", "SKIP"
    except Void as why:
        text, sound = f"void: {why}", False
    except TimeoutError:
        text, sound = "did not end in time", False
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        text, sound = f"{type(error).__name__}: {error}", False
    took_s = round(time.monotonic() - began, 1)
    return Line(proof.name, proof.claim, text, proof.bar, verdict, took_s, data, sound)


def show(title: str, proofs: Sequence[Proof], folder: Path, arguments: Sequence[str]) -> int:
    """The command: runs the proofs asked for, prints the page, returns the exit code."""
    parser = argparse.ArgumentParser(prog=title, description=__doc__)
    parser.add_argument("only", nargs="*", help="names of proofs; all when none is given")
    parser.add_argument("--control", action="store_true", help="plant each proof's fault")
    parser.add_argument("--quick", action="store_true", help="shorter load; a look, not a proof")
    parser.add_argument("--list", action="store_true", help="names, claims, time; runs nothing")
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    options = parser.parse_args(arguments)
    chosen = [p for p in proofs if not options.only or p.name in options.only]
    unknown = set(options.only) - {p.name for p in proofs}
    if unknown:
        parser.error(f"no such proof: {', '.join(sorted(unknown))}; try --list")
    console = Console(width=None if sys.stdout.isatty() else 160)
    total_s = sum(p.about_s for p in chosen)
    if options.list:
        for p in chosen:
            console.print(f"[b]{p.name}[/b] (about {p.about_s} s): {escape(p.claim)}")
        return 0
    kind = "controls: each must FAIL" if options.control else "proofs"
    console.print(f"{title}: {len(chosen)} {kind}, about {total_s // 60 + 1} min")
    lines = []
    for proof in chosen:
        console.print(f"  {proof.name} ... (about {proof.about_s} s)", style="dim")
        run = Run(proof.fault if options.control else None, folder / proof.name, options.quick)
        run.folder.mkdir(parents=True, exist_ok=True)
        lines.append(asyncio.run(run_one(proof, run)))
        console.print(f"  {lines[-1].verdict}: {escape(lines[-1].figure)}", style="dim")
    _print(console, title, lines, control=options.control)
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    return _exit_code(console, lines, control=options.control)


def _print(console: Console, title: str, lines: list[Line], *, control: bool) -> None:
    table = Table(title=f"{title} (controls)" if control else title, show_lines=True)
    for column in ("claim", "figure", "bar"):
        table.add_column(column, overflow="fold", ratio=3 if column != "bar" else 2)
    table.add_column("", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    colour = {"PASS": "green", "FAIL": "red", "SKIP": "yellow"}
    for line in lines:
        verdict = f"[{colour[line.verdict]}]{line.verdict}[/]"
        table.add_row(
            escape(line.claim), escape(line.figure), escape(line.bar), verdict, f"{line.took_s:.0f}"
        )
    console.print(table)


def _exit_code(console: Console, lines: list[Line], *, control: bool) -> int:
    if control:
        ran = [line for line in lines if line.verdict != "SKIP"]
        failed = sum(line.verdict == "FAIL" and line.sound for line in ran)
        console.print(f"{failed} of {len(ran)} controls fail by their figure, as they must")
        return 0 if failed == len(ran) else 1
    hold = sum(line.verdict == "PASS" for line in lines)
    console.print(f"{hold} of {len(lines)} hold")
    return 1 if any(line.verdict == "FAIL" for line in lines) else 0
