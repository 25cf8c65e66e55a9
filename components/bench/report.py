"""Figures from records. Pure: records in, plain values and text out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from components.bench.records import Record


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count as good; None: no bound.

    ``itl_ms`` bounds the request's mean time per output token after the first.
    """

    ttft_ms: float | None = None
    itl_ms: float | None = None

    @property
    def is_set(self) -> bool:
        return self.ttft_ms is not None or self.itl_ms is not None

    def holds(self, record: Record) -> bool:
        """Did this request end well and in time?"""
        return (
            record.ok
            and _within(record.ttft_s, self.ttft_ms)
            and _within(record.tpot_s, self.itl_ms)
        )


def _within(value_s: float | None, bound_ms: float | None) -> bool:
    return bound_ms is None or value_s is None or value_s * 1000 <= bound_ms


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the sorted values lie, between neighbours on a line."""
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread_ms(values_s: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, p50, p90, p99 and the largest, in ms; None without values."""
    ordered = sorted(value for value in values_s if value is not None)
    if not ordered:
        return None
    figures = {
        "mean": sum(ordered) / len(ordered),
        "p50": percentile(ordered, 0.50),
        "p90": percentile(ordered, 0.90),
        "p99": percentile(ordered, 0.99),
        "max": ordered[-1],
    }
    return {name: round(value * 1000, 3) for name, value in figures.items()}


def summary(records: Sequence[Record], slo: Slo, generator: Mapping[str, object]) -> dict[str, Any]:
    """The run in figures; durations in ms unless the name says otherwise.

    ``duration_s`` runs from the first arrival to the last end. Latencies are of requests that
    succeeded; ``errors`` counts the others by code. ``off_length`` counts answers that are longer
    or shorter than asked. ``goodput`` is None without an SLO; its share is of all requests.
    """
    good = [record for record in records if record.ok]
    duration_s = max((record.done_s or record.arrival_s for record in records), default=0.0)
    duration_s -= min((record.arrival_s for record in records), default=0.0)
    tokens = sum(record.output_tokens for record in good)
    return {
        "requests": len(records),
        "ok": len(good),
        "errors": dict(Counter(r.error or "unfinished" for r in records if not r.ok)),
        "duration_s": round(duration_s, 3),
        "requests_per_s": _rate(len(good), duration_s),
        "prompt_tokens": sum(r.prompt_tokens_seen or r.prompt_tokens for r in good),
        "output_tokens": tokens,
        "output_tokens_per_s": _rate(tokens, duration_s),
        "off_length": sum(record.output_tokens != record.output_tokens_asked for record in good),
        "ttft_ms": spread_ms(record.ttft_s for record in good),
        "itl_ms": spread_ms(chain.from_iterable(record.gaps_s for record in good)),
        "tpot_ms": spread_ms(record.tpot_s for record in good),
        "e2e_ms": spread_ms(record.e2e_s for record in good),
        "goodput": _goodput(records, slo, duration_s) if slo.is_set else None,
        "generator": {
            # A generator that sends late measures itself: look here before believing the rest.
            "late_ms": spread_ms(r.sent_s - r.arrival_s for r in records if r.sent_s),
            **generator,
        },
    }


def _goodput(records: Sequence[Record], slo: Slo, duration_s: float) -> dict[str, Any]:
    kept = sum(slo.holds(record) for record in records)
    return {
        "slo_ttft_ms": slo.ttft_ms,
        "slo_itl_ms": slo.itl_ms,
        "requests": kept,
        "share": round(kept / len(records), 4) if records else 0.0,
        "requests_per_s": _rate(kept, duration_s),
    }


def _rate(count: int, duration_s: float) -> float:
    return round(count / duration_s, 3) if duration_s > 0 else 0.0


def as_text(figures: Mapping[str, Any]) -> str:
    """The summary for people."""
    f = figures
    lines = [
        f"requests    {f['ok']} of {f['requests']} ok, {f['requests_per_s']:.2f}/s",
        f"duration    {f['duration_s']:.1f} s",
        f"tokens in   {f['prompt_tokens']}",
        f"tokens out  {f['output_tokens']}, {f['output_tokens_per_s']:.1f}/s",
        "",
        f"{'ms':<6}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    for name in ("ttft", "itl", "tpot", "e2e"):
        if spread := f[f"{name}_ms"]:
            values = "".join(
                f"{spread[key]:>10.2f}" for key in ("mean", "p50", "p90", "p99", "max")
            )
            lines.append(f"{name.upper():<6}{values}")
    lines.append("")
    if goodput := f["goodput"]:
        bounds = [
            f"{name} <= {goodput[key]:g} ms"
            for name, key in (("TTFT", "slo_ttft_ms"), ("ITL", "slo_itl_ms"))
            if goodput[key] is not None
        ]
        lines.append(
            f"goodput     {goodput['share']:.1%} of the requests,"
            f" {goodput['requests_per_s']:.2f}/s, keep {' and '.join(bounds)}"
        )
    lines += [f"error       {count} x {code}" for code, count in f["errors"].items()]
    if f["off_length"]:
        lines.append(f"off length  {f['off_length']} answers are longer or shorter than asked")
    if late := f["generator"]["late_ms"]:
        lines.append(f"sent late   p99 {late['p99']:.2f} ms (the generator's own delay)")
    return "\n".join(lines)
