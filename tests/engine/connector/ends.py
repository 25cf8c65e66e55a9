"""Both ends of a link, each in a process (``link_end.py``) with the key of a connector."""

import asyncio
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
NAMES = ("prefill-0-engine-0", "decode-0-engine-0")
SCENARIO_S = 60


class Ends:
    """Starts them; ``environment`` is added to ours, end by end."""

    def __init__(self, server, kind="gloo", devices=("cpu", "cpu"), environment=({}, {})):
        self._url = server.url
        self._keys = [str(server.key_file("connector", name)) for name in NAMES]
        self._kind = kind
        self._devices = devices
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        ours = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._environments = [{**ours, **more} for more in environment]
        self._started: list[asyncio.subprocess.Process] = []

    async def run(self, scenario):
        """What P's end and D's end saw."""
        async with asyncio.timeout(SCENARIO_S):
            ends = await asyncio.gather(self._start(0, scenario), self._start(1, scenario))
            said = await asyncio.gather(*(end.communicate(b"go\n") for end in ends))
        return [json.loads(out or b"{}") for out, _ in said]

    async def _start(self, end, scenario):
        told = {
            "end": end,
            "url": self._url,
            "keys": self._keys,
            "scenario": scenario,
            "kind": self._kind,
            "device": self._devices[end],
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.engine.connector.link_end", json.dumps(told),
            cwd=ROOT, env=self._environments[end],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._started.append(process)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"up\n"
        return process

    async def stop(self):
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.wait()
