"""Why a request went where it went, and where its time went. Pure: its recorded steps in.

Steps of one process come in order; those of different processes are put in order by their clocks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from schemas.codes import RequestStep, Role
from schemas.past import Choice, ConsideredCandidate, ExplainRequestReply, StepThen
from schemas.request import RequestEvent

#: An event, and the process that saw it.
Seen = tuple[str, RequestEvent]

_ENDS: Final = frozenset({"finished", "refused", "cancelled"})
#: What a candidate was judged by, as lists beside ``candidates`` in a ``routed`` step.
_TERMS: Final = {
    "load": "loads",
    "room": "rooms",
    "queued_tokens": "queued_tokens",
    "free_pages": "free_pages",
}


def explained(request_id: str, seen: Iterable[Seen], tenant: str | None) -> ExplainRequestReply:
    """The whole story, or ``found`` False; of another tenant's request as if it were not there."""
    steps = sorted(
        ((s, e) for s, e in seen if e.request_id == request_id), key=lambda s: s[1].at_ms
    )
    accepted = _detail(steps, "accepted")
    if not steps or (tenant is not None and accepted.get("tenant") != tenant):
        return ExplainRequestReply(request_id=request_id, found=False)
    began_ms = steps[0][1].at_ms
    ends = [event for _, event in steps if event.step in _ENDS]
    finished = _detail(steps, "finished")
    return ExplainRequestReply(
        request_id=request_id,
        found=True,
        model=str(accepted.get("model", "")),
        tenant=str(accepted.get("tenant", "")),
        prompt_tokens=int(accepted.get("prompt_tokens") or 0),
        output_tokens=int(finished.get("completion_tokens") or 0),
        outcome=ends[-1].step if ends else "running",
        attempts=max(event.attempt for _, event in steps),
        queue_ms=_detail(steps, "scheduled").get("queue_ms"),
        phases_ms=_phases(steps),
        choices=tuple(c for _, e in steps if e.step == "routed" for c in choices_of(e)),
        steps=tuple(_told(source, event, began_ms) for source, event in steps),
        notes=_notes(steps),
    )


def _told(source: str, event: RequestEvent, began_ms: int) -> StepThen:
    return StepThen(
        step=event.step,
        attempt=event.attempt,
        source=source,
        at_ms=event.at_ms,
        since_ms=event.at_ms - began_ms,
        detail=event.detail,
    )


def _detail(steps: Sequence[Seen], step: RequestStep) -> Mapping[str, Any]:
    return next((event.detail for _, event in steps if event.step == step), {})


def _first_ms(steps: Sequence[Seen], step: RequestStep) -> int | None:
    return next((event.at_ms for _, event in steps if event.step == step), None)


def _phases(steps: Sequence[Seen]) -> dict[str, float]:
    """How long each phase took, as far as its two ends were recorded, by wall clocks.

    Where the gateway timed the whole by its own clock (TTFT, E2E) that figure stands.
    """
    marks = {s: _first_ms(steps, s) for s in ("accepted", "scheduled", "dispatched")}
    handed, first = _first_ms(steps, "handed_over"), _first_ms(steps, "first_token")
    last = next((e.at_ms for _, e in reversed(steps) if e.step in _ENDS), None)
    spans = {
        "to_scheduler": (marks["accepted"], marks["scheduled"]),
        "to_dispatch": (marks["scheduled"], marks["dispatched"]),
        "prefill": (marks["dispatched"], handed or first),
        "handoff_to_first_token": (handed, first),
        "decode": (first, last),
        "total": (marks["accepted"], last),
    }
    phases = {
        name: float(max(0, end - start))
        for name, (start, end) in spans.items()
        if start is not None and end is not None
    }
    timed = {
        "queued": _detail(steps, "scheduled").get("queue_ms"),
        "handoff": _detail(steps, "handed_over").get("ms"),
        "ttft": _detail(steps, "first_token").get("ttft_ms"),
        "total": _detail(steps, "finished").get("e2e_ms"),
    }
    return phases | {name: float(ms) for name, ms in timed.items() if ms is not None}


def _notes(steps: Sequence[Seen]) -> tuple[str, ...]:
    known = {event.step for _, event in steps}
    missing = [s for s in ("accepted", "scheduled", "routed", "dispatched") if s not in known]
    if missing and "finished" in known:
        return (f"the history does not hold: {', '.join(missing)}",)
    return ()


# Choices.


def choices_of(routed: RequestEvent) -> list[Choice]:
    """One choice per engine that the request needed: prefill and decode, or one for both."""
    detail: Mapping[str, Any] = routed.detail
    count = len(detail.get("candidates") or ())
    prefills = int(detail.get("prefill_candidates") or 0)
    groups: list[tuple[Role, range]] = []
    if prefills:
        groups.append(("prefill", range(prefills)))
    groups.append(("decode" if prefills else "aggregated", range(prefills, count)))
    chosen = set(detail.get("chosen") or ())
    return [
        _choice(routed, role, [_candidate(detail, place, chosen) for place in places])
        for role, places in groups
    ]


def _candidate(detail: Mapping[str, Any], place: int, chosen: set[str]) -> ConsideredCandidate:
    worker = detail["candidates"][place]
    return ConsideredCandidate(
        worker=worker,
        chosen=worker in chosen,
        terms={term: _at(detail, name, place) for term, name in _TERMS.items()},
        state_seq=_at(detail, "state_seqs", place) or 0,
        state_age_ms=_at(detail, "state_ages_ms", place) or 0,
        cost_ms=_at(detail, "costs_ms", place),
    )


def _at(detail: Mapping[str, Any], name: str, place: int) -> Any:
    values = detail.get(name)
    return values[place] if isinstance(values, list) and place < len(values) else None


def _choice(routed: RequestEvent, role: Role, candidates: list[ConsideredCandidate]) -> Choice:
    mine = next((c.cost_ms for c in candidates if c.chosen), None)
    others = [(c.cost_ms, c.worker) for c in candidates if not c.chosen and c.cost_ms is not None]
    best = min(others, default=None)
    return Choice(
        attempt=routed.attempt,
        policy=str(routed.detail.get("policy", "")),
        what=role,
        candidates=tuple(candidates),
        best_alternative=best[1] if best else None,
        saved_ms=round(best[0] - mine, 3) if best and mine is not None else None,
    )
