"""Python processes of a proof, with the fault that it plants."""

import asyncio
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLANTED = Path(__file__).parent / "planted"


def planted(fault: str | None) -> dict[str, str]:
    """Variables that plant it: `sitecustomize` of that folder changes code as it is imported."""
    if not fault:
        return {}
    path = os.pathsep.join(filter(None, (str(PLANTED), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "PLANTED_FAULT": fault}


async def python(*words: str, fault: str | None) -> tuple[int, str, str]:
    """Run it to its end in the repository: exit code, what it wrote, and its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *words),
        cwd=REPOSITORY,
        env={**os.environ, **planted(fault)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()
