"""Answers about the past, laid out for people. Pure."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from components.cli.bundles import Kept
from components.cli.columns import columns
from components.cli.instants import show
from components.replay.bundle import Manifest
from schemas.past import (
    Choice,
    ConsideredCandidate,
    ExplainRequestReply,
    Happened,
    ReplayJournalReply,
    ShowInstantReply,
)

#: Rows of a long table.
ROWS_MAX: Final = 20


def line(event: Happened) -> str:
    text = f"{show(event.at_ms)} {event.source:<12} {event.what:<24} {event.text}"
    return text.rstrip()


def instant(then: ShowInstantReply) -> str:
    """The fleet at an instant: who lived, what engines had said, what waited and ran."""
    parts = [f"at {show(then.at_ms)}"]
    parts.append(
        columns(
            ("COMPONENT", "ID", "HOST", "SINCE"),
            ((p.component, p.instance, p.host, show(p.joined_ms)) for p in then.processes),
        )
    )
    if then.engines:
        parts.append(columns(("ENGINE", "LOAD", "AGE"), _engines(then)))
    if then.registered:
        rows = ((r.instance, r.role, r.by) for r in then.registered)
        parts.append(columns(("ENGINE ELSEWHERE", "ROLE", "KNOWN BY"), rows))
    if then.waiting:
        rows4 = (
            (w.request_id, str(w.attempt), str(w.prompt_tokens), f"{w.waited_ms} ms")
            for w in then.waiting[:ROWS_MAX]
        )
        parts.append(columns(("WAITS", "ATTEMPT", "PROMPT", "FOR"), rows4))
        parts += _more(len(then.waiting))
    if then.placed:
        rows4 = (
            (p.request_id, str(p.attempt), p.prefill_worker or "-", p.worker)
            for p in then.placed[:ROWS_MAX]
        )
        parts.append(columns(("RUNS", "ATTEMPT", "PREFILL", "AT"), rows4))
        parts += _more(len(then.placed))
    parts.append(
        f"{len(then.waiting)} waited, {len(then.placed)} ran; read up to "
        + ", ".join(f"{stream} {seq}" for stream, seq in then.read.items())
    )
    parts += [
        f"{core.instance}: rebuilt up to entry {core.entry}, {core.age_ms} ms before"
        + ("" if core.whole else "; entries are missing")
        for core in then.cores
    ]
    parts += [f"note: {note}" for note in then.notes]
    return "\n\n".join(parts)


def _more(count: int) -> list[str]:
    return [f"... and {count - ROWS_MAX} more"] if count > ROWS_MAX else []


def _engines(then: ShowInstantReply) -> Iterator[tuple[str, str, str]]:
    for entry in then.engines:
        age = f"{entry.age_ms} ms{' stale' if entry.stale else ''}"
        if entry.load is not None:
            load = entry.load
            said = (
                f"{load.role} running={load.running} waiting={load.waiting}"
                f" queued_tokens={load.queued_tokens}"
                f" kv_pages={load.kv_pages_used}/{load.kv_pages_total}"
            )
        elif entry.state is not None:
            state = entry.state
            said = f"{state.scheduling_mode} pending_tokens={state.pending_tokens_total}"
        else:
            said = ""
        yield entry.engine, said, age


def bundle(manifest: Manifest, path: Path) -> str:
    """What stands in a bundle."""
    rows = [(n, str(p.messages), _mib(p.bytes)) for n, p in manifest.streams.items()]
    size = _mib(path.stat().st_size) if path.exists() else ""
    return (
        f"{path}: {show(manifest.from_ms)} to {show(manifest.to_ms)} {size}\n"
        f"{columns(('STREAM', 'MESSAGES', 'UNPACKED'), rows)}"
    )


def bundles(listed: list[Kept]) -> str:
    """What was imported."""
    rows = (
        (kept.name, *_span(kept.manifest), _mib(kept.bytes))
        if kept.manifest
        else (kept.name, "damaged", "", "", _mib(kept.bytes))
        for kept in listed
    )
    table = columns(("BUNDLE", "FROM", "TO", "MESSAGES", "SIZE"), rows)
    return "\n".join([table, *(f"note: {kept.damaged}" for kept in listed if kept.damaged)])


def _span(manifest: Manifest) -> tuple[str, str, str]:
    streams = ", ".join(f"{name} {part.messages}" for name, part in manifest.streams.items())
    return show(manifest.from_ms), show(manifest.to_ms), streams


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def example(command: str, manifest: Manifest, path: str) -> str:
    """A command line to try on a bundle."""
    words = {
        "at": f"at {show((manifest.from_ms + manifest.to_ms) // 2)}",
        "range": f"range {show(manifest.from_ms)} {show(manifest.to_ms)}",
        "run": "run --route round_robin",
    }
    return f"{words[command]} --bundle {path}"


def rerun(found: ReplayJournalReply, took_s: float) -> str:
    """Each life with what came out of it again; then what another policy would have done."""
    rows = (
        (
            life.instance,
            str(life.entries),
            str(life.inputs),
            str(life.decisions),
            "all again, bit for bit" if life.exact else _broken(life.first_mismatch, life.missing),
        )
        for life in found.lives
    )
    parts = [columns(("CORE", "ENTRIES", "INPUTS", "DECISIONS", "CAME OUT"), rows)]
    if found.policy:
        parts.append(_comparison(found))
    parts += [f"note: {note}" for note in found.notes]
    parts.append(f"run in {took_s:.2f} s")
    return "\n\n".join(parts)


def _broken(first_mismatch: int | None, missing: int) -> str:
    if first_mismatch is not None:
        return f"differently from entry {first_mismatch} on"
    return f"{missing} inputs are missing"


def _comparison(found: ReplayJournalReply) -> str:
    share = 100 * found.different / found.compared if found.compared else 0.0
    head = (
        f"with {found.policy}: {found.different} of {found.compared} decisions"
        f" would differ ({share:.1f} %)"
    )
    if found.effect_ms_mean is not None:
        head += f"; by the engine model {found.effect_ms_mean:+.3f} ms each on average"
    if not found.differences:
        return head
    rows = (
        (
            d.request_id,
            _cut(d.recorded),
            _cut(d.instead),
            "-" if d.effect_ms is None else f"{d.effect_ms:+.3f} ms",
        )
        for d in found.differences[:ROWS_MAX]
    )
    table = columns(("ABOUT", "RECORDED", "INSTEAD", "EFFECT"), rows)
    return "\n".join([head, table, *_more(found.different)])


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def explanation(found: ExplainRequestReply) -> str:
    """The story of one request."""
    head = (
        f"{found.request_id}: {found.outcome} after {found.attempts} attempt(s);"
        f" {found.model}, {found.prompt_tokens} prompt tokens, {found.output_tokens} written"
    )
    phases = ", ".join(f"{name} {ms:g}" for name, ms in found.phases_ms.items())
    parts = [head, f"ms: {phases}" if phases else "no phase was completed"]
    parts += [_choice(choice) for choice in found.choices]
    rows = (
        (f"+{s.since_ms} ms", s.source, s.step, str(s.attempt), _details(s.detail))
        for s in found.steps
    )
    parts.append(columns(("WHEN", "WHO", "STEP", "ATTEMPT", "DETAIL"), rows))
    parts += [f"note: {note}" for note in found.notes]
    return "\n\n".join(parts)


def _details(detail: object) -> str:
    assert isinstance(detail, dict)
    # The candidates of a choice stand in a table of their own.
    return " ".join(f"{k}={v}" for k, v in detail.items() if not isinstance(v, list))


def _choice(choice: Choice) -> str:
    head = f"attempt {choice.attempt}, {choice.what} by {choice.policy}"
    if choice.best_alternative and choice.saved_ms is not None:
        verb = "saved" if choice.saved_ms >= 0 else "cost"
        head += f": {verb} {abs(choice.saved_ms):g} ms against {choice.best_alternative}"
    rows = (_candidate(candidate) for candidate in choice.candidates)
    return f"{head}\n{columns(('', 'ENGINE', 'TERMS', 'COST', 'STATE'), rows)}"


def _candidate(candidate: ConsideredCandidate) -> tuple[str, ...]:
    terms = " ".join(f"{name}={value}" for name, value in candidate.terms.items())
    cost = "-" if candidate.cost_ms is None else f"{candidate.cost_ms:g} ms"
    state = f"report {candidate.state_seq}, {candidate.state_age_ms} ms old"
    return ("*" if candidate.chosen else "", candidate.worker, terms, cost, state)
