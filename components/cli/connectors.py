"""Ranks of vLLM engines are on the bus beside their agents: each has a name and key of its own."""

import os
from pathlib import Path

from components.cli.engine_options import engine_args
from components.cli.plan import Planned
from components.cli.settings import UpSettings
from components.host.settings import load
from components.worker.settings import WorkerSettings
from components.worker.vllm.connector.config import connector_name, connector_names

CONNECTOR = "connector"


def ranks_of(settings: UpSettings, config: Path | None) -> int:
    """Ranks of each engine that will have connectors of ours; 0: none will.

    Raises ``BadSettings``.
    """
    given: dict[str, object] = {"engine": settings.engine} if settings.engine else {}
    given["engine_args"] = engine_args(settings, config, os.environ)
    worker = load(WorkerSettings, "worker", config, os.environ, given)
    if worker.engine != "vllm" or worker.kv_transfer or worker.connector in {"other", "none"}:
        return 0
    return int(worker.engine_args.get("tensor_parallel_size", 1))


def instances(plan: tuple[Planned, ...], ranks: int) -> list[tuple[str, str]]:
    """``(component, instance)`` of every connector of the plan: whoever needs a key."""
    workers = [p.instance for p in plan if p.component == "worker"]
    return [(CONNECTOR, name) for worker in workers for name in connector_names(worker, ranks)]


def arguments(folder: Path | None, worker: str, ranks: int) -> list[str]:
    """What this worker is told of its connectors' keys."""
    if folder is None or not ranks:
        return []
    own = folder / f"{connector_name(worker, 0)}.nk"
    if own.is_file():
        file = own.with_name(f"{worker}-engine-{{rank}}.nk")
    else:
        file = folder / f"{CONNECTOR}.nk"
    return ["--set", f"connector_key_file={file}"]
