"""Traces of real traffic as arrivals: when, how long a prompt, how many tokens out.

Pure: what reads and unpacks files gives their lines. Known forms are the Azure LLM inference traces
(CSV with wall-clock times) and Mooncake's (JSON lines with milliseconds and block ids).
"""

import calendar
import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from components.domain.pages import PAGE_TOKENS

MOONCAKE_BLOCK_TOKENS = 512

_WALL_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(\.\d+)?(?:\+00:00|Z)?")


class TraceError(ValueError):
    """A row is not of the form that it should have; the message names it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace. `at_s` counts from the first one.

    `block_ids` name the blocks of `block_tokens` tokens that the prompt consists of, equal ids
    meaning equal prefixes; traces without them share nothing.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""
    block_ids: tuple[int, ...] = ()
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    def page_hashes(self) -> tuple[int, ...]:
        """Stand-ins for the hashes of the prompt's full pages, made when asked for (they are many).

        A block is cut into pages, each named by the block and its place in it. A last block that is
        only partly filled gives the pages that it fills.
        """
        per_block = self.block_tokens // PAGE_TOKENS
        pages = min(self.prompt_tokens // PAGE_TOKENS, per_block * len(self.block_ids))
        return tuple(
            self.block_ids[page // per_block] * per_block + page % per_block + 1
            for page in range(pages)
        )


def parse_azure(lines: Iterable[str]) -> list[Arrival]:
    """Rows of `TIMESTAMP,ContextTokens,GeneratedTokens`, with the header.

    Rows without a token on either side are left out. Raises TraceError.
    """
    arrivals = []
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            at_s = _wall_time_s(row["TIMESTAMP"])
            prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"line {number}: {error!r} in {row}") from error
        arrivals.append(Arrival(at_s, prompt, output))
    return _from_first(arrivals)


def parse_mooncake(lines: Iterable[str]) -> list[Arrival]:
    """Objects with `timestamp` (ms), `input_length`, `output_length`, `hash_ids` (512 tokens each).

    Rows without a token on either side are left out. Raises TraceError.
    """
    arrivals = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            arrivals.append(
                Arrival(
                    float(row["timestamp"]) / 1e3,
                    int(row["input_length"]),
                    int(row["output_length"]),
                    block_ids=tuple(int(block) for block in row["hash_ids"]),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"line {number}: {error!r} in {line[:200]}") from error
    return _from_first(arrivals)


def mean_rate_per_s(arrivals: Sequence[Arrival]) -> float:
    """Arrivals per second between the first and the last one; 0 when all come at once."""
    span_s = arrivals[-1].at_s - arrivals[0].at_s if arrivals else 0.0
    return (len(arrivals) - 1) / span_s if span_s else 0.0


def rescaled(arrivals: Sequence[Arrival], rate_per_s: float) -> list[Arrival]:
    """The same arrivals, stretched or compressed in time to a mean rate of `rate_per_s`.

    Bursts stay bursts. Arrivals that all come at once stay as they are.
    """
    if rate_per_s <= 0:
        raise ValueError(f"the rate must be positive, not {rate_per_s}")
    factor = mean_rate_per_s(arrivals) / rate_per_s
    return [replace(a, at_s=a.at_s * factor) for a in arrivals] if factor else list(arrivals)


def _from_first(arrivals: list[Arrival]) -> list[Arrival]:
    """Those with work, in order of time, counted from the first one."""
    kept = [a for a in arrivals if a.prompt_tokens > 0 and a.output_tokens > 0]
    kept.sort(key=lambda arrival: arrival.at_s)
    return [replace(a, at_s=a.at_s - kept[0].at_s) for a in kept]


def _wall_time_s(text: str) -> float:
    """Seconds since 1970 of `2023-11-16 18:15:46.6805900`."""
    match = _WALL_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time")
    *fields, fraction = match.groups()
    return calendar.timegm(tuple(int(field) for field in fields)) + float(fraction or 0)
