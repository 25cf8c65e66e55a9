"""From settings to a running vLLM. Nothing here imports vllm before it is called."""

import asyncio
import contextlib
import importlib
import importlib.metadata
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.host.errors import CannotStart
from components.worker.vllm.backend import Backend


@dataclass(frozen=True, slots=True)
class VllmModel:
    """What to load. ``source`` is a directory, or a name on Hugging Face's hub.

    ``kv_transfer`` are the fields of vLLM's ``KVTransferConfig``; empty without a connector.
    """

    name: str
    source: str
    created_s: int
    engine_args: Mapping[str, Any]
    kv_transfer: Mapping[str, Any]
    #: Say what enters and leaves the prefix cache.
    kv_events: bool = False
    #: Names of vLLM's parsers; empty for none.
    tool_parser: str = ""
    reasoning_parser: str = ""
    #: As vLLM's ``--tool-strict-level``.
    tool_strict_level: str = "auto"
    #: What one constraint may cost to compile, in seconds of a core.
    grammar_cpu_s: float = 3.0
    on_odd_output: Callable[[BaseException], None] = lambda _: None


def load_async_llm(model: VllmModel) -> Backend:
    """Start vLLM in this process and its children: seconds to minutes. Raises ``CannotStart``."""
    for name, value in environment(model).items():
        os.environ.setdefault(name, value)
    try:
        module = importlib.import_module("components.worker.vllm.async_llm")
    except ImportError as error:
        raise CannotStart(f"vLLM is not installed in this environment: {error}") from error
    backend: Backend = module.AsyncLLMBackend(model)
    return backend


def environment(model: VllmModel) -> dict[str, str]:
    """What vLLM reads of the environment when it is imported, where nobody has said otherwise."""
    defaults = {"VLLM_NO_USAGE_STATS": "1"}
    if Path(model.source).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    if "Nixl" in str(model.kv_transfer.get("kv_connector", "")):
        # Where the other side's NIXL asks for our address; it travels with the offer.
        defaults["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(_free_port())
    if is_for_cpus():
        # By itself every engine would take the first cores for its own and leave one out.
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if model.engine_args.get("tensor_parallel_size", 1) == 1:
            # The worker runs inside the engine's process: one process less, a faster start.
            defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return defaults


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_for_cpus() -> bool:
    """Is the vLLM of this environment the build for CPUs?"""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


async def in_thread(work: Callable[[], None]) -> None:
    """Like ``asyncio.to_thread``, in a thread that holds up no exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        error = None
        try:
            work()
        except BaseException as caught:  # noqa: BLE001  (it is raised where it is waited for)
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, daemon=True, name="vllm").start()
    await done
