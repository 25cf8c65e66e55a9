"""Does the journal explain what happened? The same cores, the recorded inputs, compared outcomes.

One *life* is one (owner, epoch): a process from its start to its end. A replay starts at a
snapshot, feeds every later entry's inputs to a fresh core, and compares the digests of what comes
out with those journalled. Nothing recorded about decisions is read to make them. Pure.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from bus import codec
from components.domain.outcomes import Core, Count, Outcome, Record
from components.host.journal import (
    EventRef,
    Input,
    Resumed,
    Tick,
    brief,
    pack_outcomes,
    unpack_inputs,
    unpack_outcomes,
)
from components.router.core import RouterCore
from components.router.settings import RouterSettings
from components.scheduler.core import SchedulerCore
from components.scheduler.settings import SchedulerSettings
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.message import Message
from schemas.request import RequestEvent

#: Builds a core from its instance name and the JSON of its settings.
CORES: Final[dict[str, Callable[[str, str], Core]]] = {
    "scheduler": lambda name, s: SchedulerCore(name, SchedulerSettings.model_validate_json(s)),
    "router": lambda name, s: RouterCore(name, RouterSettings.model_validate_json(s)),
}

#: Finds the event behind a reference; None when the stream no longer has it.
Resolve = Callable[[EventRef], Message | None]
_Step = tuple[str, str, int]
#: Outcomes of a wake-up that decided nothing.
NOTHING: Final = pack_outcomes([])


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An entry whose replay gave something else."""

    index: int
    journalled: list[list[object]]
    replayed: list[list[object]]


@dataclass(slots=True)
class Report:
    """What one life's replay showed.

    ``unexplained`` are steps in the history that no journal entry caused; ``unseen`` steps that the
    journal caused but the history does not hold (a kill between journal and outcome).
    """

    owner: str
    owner_epoch: int
    entries: int = 0
    inputs: int = 0
    decisions: int = 0
    gaps: list[int] = field(default_factory=list)
    unresolved: list[EventRef] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)
    unexplained: list[_Step] = field(default_factory=list)
    unseen: list[_Step] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Every journalled decision came out again, bit for bit, from whole inputs."""
        return not (self.gaps or self.unresolved or self.mismatches)


def replay(
    start: JournalSnapshotted, entries: Iterable[JournalAppended], resolve: Resolve
) -> tuple[Report, list[Outcome]]:
    """Run one life from ``start`` on; returns the report and all outcomes, in order."""
    core = CORES[start.component](start.owner, start.settings)
    core.restore(codec.unpack(start.state))
    report = Report(start.owner, start.owner_epoch)
    everything: list[Outcome] = []
    index = start.index
    for entry in entries:
        if entry.index <= start.index:
            continue
        if entry.index != index + 1:
            report.gaps.append(entry.index)
        index = entry.index
        outcomes = _replay_entry(core, entry, resolve, report)
        everything += outcomes
    return report, everything


def apply(core: Core, entry: JournalAppended, resolve: Resolve) -> bool:
    """Bring ``core`` past one entry; False when an event that it refers to is gone."""
    missing: list[EventRef] = []
    for item in unpack_inputs(entry.inputs):
        feed(core, item, entry.now_s, resolve, missing)
    return not missing


def _replay_entry(
    core: Core, entry: JournalAppended, resolve: Resolve, report: Report
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    inputs = unpack_inputs(entry.inputs)
    for item in inputs:
        outcomes += feed(core, item, entry.now_s, resolve, report.unresolved)
    report.entries += 1
    report.inputs += len(inputs)
    if entry.outcomes == NOTHING and not any(not isinstance(o, Count) for o in outcomes):
        return outcomes
    report.decisions += len(unpack_outcomes(entry.outcomes))
    if pack_outcomes(outcomes) != entry.outcomes:
        replayed = [brief(o) for o in outcomes]
        report.mismatches.append(Mismatch(entry.index, unpack_outcomes(entry.outcomes), replayed))
    return outcomes


def feed(
    core: Core, item: Input, now_s: float, resolve: Resolve, missing: list[EventRef]
) -> list[Outcome]:
    """Give a core one recorded input; an event that is gone goes into ``missing``."""
    match item:
        case Tick():
            return core.on_tick(now_s)
        case Resumed():
            return core.on_resume(now_s)
        case EventRef():
            message = resolve(item)
            if message is None:
                missing.append(item)
                return []
            return core.on_message(message, now_s, item.seq)
        case Message():
            return core.on_message(item, now_s)


def compare_with_history(
    report: Report, outcomes: Iterable[Outcome], history: Iterable[RequestEvent]
) -> None:
    """Fill ``unexplained`` and ``unseen``: steps in the history against steps replayed."""
    caused = Counter((o.request_id, o.step, o.attempt) for o in outcomes if isinstance(o, Record))
    seen = Counter((e.request_id, e.step, e.attempt) for e in history)
    report.unexplained = sorted((seen - caused).elements())
    report.unseen = sorted((caused - seen).elements())
