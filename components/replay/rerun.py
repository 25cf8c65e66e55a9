"""A stretch of the journal, run again: by the recorded policies, or judged under others."""

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from components.replay.check import Report
from components.replay.compare import Comparison, compare
from components.replay.past import KEPT, Past, opened, place_of, read_between
from components.replay.recording import Life, Recording
from components.router.policies import POLICIES as ROUTES
from components.scheduler.policies import POLICIES as ORDERS
from schemas.past import LifeReplayed, ReplayJournalReply

#: Differences that one answer lists.
LISTED_MAX: Final = 200
#: Messages that one question may make the process read: it answers others meanwhile.
MESSAGES_MAX: Final = 2_000_000


class BadPolicy(ValueError):
    """No policy has this name; the message says which there are."""


class TooMuch(ValueError):
    """The stretch holds more than is read at once; choose instants closer together."""


def changes_of(order: str | None, route: str | None) -> dict[str, Mapping[str, str]]:
    """Component -> settings to change; raises ``BadPolicy``."""
    changes: dict[str, Mapping[str, str]] = {}
    if order is not None:
        _check("order", order, ORDERS)
        changes["scheduler"] = {"order": order}
    if route is not None:
        _check("route", route, ROUTES)
        changes["router"] = {"policy": route}
    return changes


def _check(what: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise BadPolicy(f"no {what} {name!r}; there are: {', '.join(sorted(known))}")


async def record(past: Past, from_ms: int, to_ms: int) -> Recording:
    """What happened between two instants, sorted into lives; raises ``TooMuch``."""
    recording, count = Recording(), 0
    for stream in KEPT:
        first = await place_of(past, stream, from_ms - 1) + 1
        last = await place_of(past, stream, to_ms)
        async for stored in read_between(past, stream, first, last):
            count += 1
            if count > MESSAGES_MAX:
                raise TooMuch(f"more than {MESSAGES_MAX} messages: choose instants closer together")
            decoded = opened(stored)
            if decoded is not None:
                recording.add(decoded)
    return recording


def rerun(
    recording: Recording, order: str | None = None, route: str | None = None
) -> ReplayJournalReply:
    """Every life again with the recorded policies, and with others where some are named.

    Raises ``BadPolicy``.
    """
    changes = changes_of(order, route)
    reports = [(life, recording.check(life)) for life in recording.lives()]
    into = Comparison(LISTED_MAX)
    notes = []
    for life in recording.lives():
        start = recording.start(life)
        if start.component in changes:
            try:
                entries = recording.in_order(life)
                compare(start, entries, recording.events.get, changes[start.component], into)
            except ValidationError as error:
                why = error.errors()[0]["msg"]
                notes.append(f"{life[0]}: its settings do not take this policy: {why}")
    return ReplayJournalReply(
        lives=tuple(_told(recording, life, report) for life, report in reports),
        policy=" ".join(
            f"{name}={value}" for name, value in (("order", order), ("route", route)) if value
        ),
        compared=into.compared,
        different=into.different,
        effect_ms_mean=into.effect_ms_mean,
        differences=tuple(into.differences),
        notes=(*notes, *_missing_lives(recording, [life for life, _ in reports])),
    )


def _told(recording: Recording, life: Life, report: Report) -> LifeReplayed:
    return LifeReplayed(
        component=recording.start(life).component,
        instance=life[0],
        process_epoch=life[1],
        entries=report.entries,
        inputs=report.inputs,
        decisions=report.decisions,
        exact=report.exact,
        first_mismatch=report.mismatches[0].index if report.mismatches else None,
        missing=len(report.gaps) + len(report.unresolved),
    )


def _missing_lives(recording: Recording, lives: Sequence[Life]) -> list[str]:
    known = set(lives)
    return [
        f"{owner}: {len(entries)} entries without a snapshot before them were left out"
        for (owner, epoch), entries in sorted(recording.entries.items())
        if (owner, epoch) not in known
    ]
