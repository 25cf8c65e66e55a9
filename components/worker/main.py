"""``switchyard worker``."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from components.host.process import run
from components.worker.service import Worker
from components.worker.settings import WorkerSettings

#: ``--set engine_args.max_model_len=1024`` is one entry of the setting ``engine_args``.
NESTED: Final = ("engine_args", "kv_transfer", "connector_args", "sglang", "topology")


def main(overrides: Mapping[str, object]) -> int:
    """Run a worker until told to stop; returns the exit code."""
    return run("worker", Worker, WorkerSettings, nested(overrides))


def nested(overrides: Mapping[str, object]) -> dict[str, object]:
    """Entries named ``setting.key`` put together; what is given here replaces the file's table."""
    flat: dict[str, object] = {}
    tables: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        table, dot, key = name.partition(".")
        if dot and table in NESTED:
            tables.setdefault(table, {})[key] = _parsed(value)
        else:
            flat[name] = value
    return {**flat, **tables}


def _parsed(value: object) -> object:
    """Numbers, flags and whole objects from JSON; every other text is itself."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
