"""When requests arrive and how long they are: a recorded trace, or equal requests back to back."""

import gzip
import lzma
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final, TextIO

from components.domain.traces import Arrival, TraceError, parse_azure, parse_mooncake

#: A trace is read up to here and no further.
ROWS_MAX: Final = 1_000_000


class BadTrace(ValueError):
    """The file is not a trace of a known form."""


def equal(requests: int, prompt_tokens: int, output_tokens: int) -> list[Arrival]:
    """Requests of one size for a closed loop, where each is sent when another has ended."""
    return [Arrival(0.0, prompt_tokens, output_tokens)] * requests


def read_trace(path: Path, limit: int | None = None) -> list[Arrival]:
    """The first ``limit`` arrivals of a trace, from time 0 on, in order of time.

    Azure's form (CSV) and Mooncake's (JSON lines), told apart by the first line; plain, ``.gz`` or
    ``.xz``. Raises ``BadTrace``.
    """
    try:
        with _opened(path) as file:
            arrivals = _parsed(islice(file, ROWS_MAX))
    except OSError as error:
        raise BadTrace(f"cannot read {path}: {error.strerror or error}") from error
    except (TraceError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise BadTrace(f"{path} is not a trace: {error}") from error
    if not arrivals:
        raise BadTrace(f"{path} holds no arrivals")
    return arrivals[:limit]


def _opened(path: Path) -> TextIO:
    match path.suffix:
        case ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        case ".xz":
            return lzma.open(path, "rt", encoding="utf-8")
        case _:
            return path.open(encoding="utf-8")


def _parsed(lines: Iterator[str]) -> list[Arrival]:
    first = next(lines, "")
    parse = parse_mooncake if first.startswith("{") else parse_azure
    return parse(chain([first], lines))
