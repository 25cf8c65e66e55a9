"""What a benchmark has measured, for people or as one JSON object."""

import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def printed(
    rows: Sequence[Mapping[str, Any]],
    head: Sequence[str],
    cells: Callable[[Mapping[str, Any]], Sequence[str]],
    *,
    as_json: bool,
) -> None:
    """``cells`` are those of a row under ``head``; JSON names the machine as well."""
    if as_json:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        json.dump({**machine, "rows": rows}, sys.stdout)
        print()
        return
    table = Table(*head)
    for row in rows:
        table.add_row(*cells(row))
    Console().print(table)
