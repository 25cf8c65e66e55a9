"""How fast the engine model is: `python -m tests.bench.engine_model [--json] [--scale X]`.

Every row is the best of three runs; `--scale` makes the work smaller or larger.
"""

import argparse
import gzip
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from components.domain.engine_model import EngineLimits, EngineModel, ModelRequest
from components.domain.pages import page_hashes
from components.domain.profiles import ConstantProfile, profile_named
from components.domain.traces import parse_azure, rescaled
from components.simulator.two_phase import Fleet, predict
from tests.bench.printed import printed

AZURE_SLICE = Path(__file__).parents[1] / "data" / "azure_conv_slice.csv.gz"
PROFILE = profile_named("llama3-8b/tp1/h100")


def best_of_three(once: Callable[[], tuple[float, int]]) -> float:
    """The least time per unit of three passes that each give (seconds, units)."""
    return min(seconds / units for seconds, units in (once() for _ in range(3)))


def running(model: EngineModel, sequences: int, output_tokens: int) -> None:
    """Bring `sequences` of prompt length 1000 to their decoding."""
    for number in range(sequences):
        model.submit(ModelRequest(f"r{number}", 1_000, output_tokens + number), 0.0)
    while model.gauges().queued_tokens:
        model.advance(model.next_step_at() or 0.0)


def to_the_end(model: EngineModel, live: bool) -> tuple[float, int]:
    """Seconds to run dry, and the calls of `advance` that took."""
    next_at = model.next_step_at if live else model.next_event_at
    calls = 0
    start = perf_counter()
    while (at_s := next_at()) is not None:
        model.advance(at_s)
        calls += 1
    return perf_counter() - start, calls


def closed_form(scale: float, sequences: int, kv_pages: int | None) -> float:
    """Seconds per decode token when only changes are looked at."""

    def once() -> tuple[float, int]:
        model = EngineModel(PROFILE, EngineLimits(kv_pages=kv_pages))
        if kv_pages:  # fill the cache, so that every new page forgets an old one
            hashes = tuple(range(1, kv_pages))
            model.submit(ModelRequest("fill", 16 * (kv_pages - 1) + 1, 1, hashes), 0.0)
            to_the_end(model, live=False)
        running(model, sequences, int(1_000 * scale))
        before = model.gauges().output_tokens
        seconds, _ = to_the_end(model, live=False)
        return seconds, model.gauges().output_tokens - before

    return best_of_three(once)


def live(scale: float, sequences: int, constant: bool = False) -> float:
    """Seconds per step when every step is looked at."""

    def once() -> tuple[float, int]:
        profile = ConstantProfile(ttft_ms=50.0, itl_ms=10.0) if constant else PROFILE
        model = EngineModel(profile, EngineLimits())
        running(model, sequences, int(1_000 * scale))
        return to_the_end(model, live=True)

    return best_of_three(once)


def arrivals_and_cancels(scale: float) -> float:
    """Seconds per submit and cancel while 64 others decode."""

    def once() -> tuple[float, int]:
        model = EngineModel(PROFILE, EngineLimits())
        running(model, 64, 100_000)
        calls = int(2_000 * scale)
        now_s = 100.0
        model.advance(now_s)
        start = perf_counter()
        for number in range(calls):
            model.submit(ModelRequest(f"x{number}", 500, 100), now_s)
            model.cancel(f"x{number}", now_s + 0.003)
            now_s += 0.007
            model.advance(now_s)
        return perf_counter() - start, calls

    return best_of_three(once)


def trace(scale: float) -> float:
    """Seconds per request of the Azure slice on 4 prefill and 4 decode engines at 40/s."""
    with gzip.open(AZURE_SLICE, "rt") as lines:
        arrivals = rescaled(parse_azure(lines)[: int(2_000 * scale)], 40.0)

    def once() -> tuple[float, int]:
        start = perf_counter()
        predict(arrivals, PROFILE, Fleet(prefill=4, decode=4))
        return perf_counter() - start, len(arrivals)

    return best_of_three(once)


def hashing(scale: float) -> float:
    """Seconds per token of a prompt of 8,000."""
    ids = list(range(8_000))

    def once() -> tuple[float, int]:
        passes = max(1, int(50 * scale))
        start = perf_counter()
        for _ in range(passes):
            page_hashes(ids, 1)
        return perf_counter() - start, passes * len(ids)

    return best_of_three(once)


def measure(scale: float) -> list[dict[str, float | str]]:
    """One row per case: what, figure, unit, and the bar it is held against ('' when none)."""
    full = closed_form(scale, 64, kv_pages=12_000)
    return [
        row(
            "decode in closed form, 64 running",
            1 / closed_form(scale, 64, None),
            "token/s",
            ">= 1e6",
        ),
        row("  the same with a full prefix cache", 1 / full, "token/s"),
        row("live, one advance per step, 32 running", live(scale, 32) * 1e6, "us/step", "<= 50"),
        row("live, 256 running", live(scale, 256) * 1e6, "us/step"),
        row("live, constant profile, 32 in step", live(scale, 32, constant=True) * 1e6, "us/step"),
        row("submit, cancel, advance beside 64", arrivals_and_cancels(scale) * 1e6, "us"),
        row("Azure trace through 4P4D", 1 / trace(scale), "request/s"),
        row("page hashes of a prompt", 1 / hashing(scale), "token/s"),
    ]


def row(what: str, figure: float, unit: str, bar: str = "") -> dict[str, float | str]:
    return {"what": what, "figure": figure, "unit": unit, "bar": bar}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--scale", type=float, default=1.0, help="how much work (default 1)")
    arguments = parser.parse_args()
    rows = measure(arguments.scale)
    printed(
        rows,
        ("engine model", "figure", "unit", "bar"),
        lambda row: (row["what"], f"{row['figure']:,.4g}", row["unit"], row["bar"]),
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
