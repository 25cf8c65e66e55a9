"""Starts engines (``agent.py``) for tests and asks them."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import nats
import psutil

ROOT = Path(__file__).parents[3]
READY_S = 180.0
ASK_S = 60.0


class EngineInTest:
    """One engine process and what it spawned."""

    def __init__(self, name, process, client, log):
        self.name = name
        self.process = process
        self._client = client
        self.log = log

    @classmethod
    async def start(cls, name, model, url, client, folder, environment=None, **options):
        """``options`` are the agent's; ``environment`` is added to this process's own."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        log = folder / f"{name}.log"
        process = await asyncio.create_subprocess_exec(
            "nice", "-n", "19", sys.executable, "-m", "tests.engine.connector.agent",
            name, str(model), url, json.dumps(options),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log.open("ab"),
        )  # fmt: skip
        return cls(name, process, client, log)

    async def ready(self):
        async with asyncio.timeout(READY_S):
            while (line := await self.process.stdout.readline()) != b"ready\n":
                assert line, f"{self.name} ended: {self.log.read_text()[-3000:]}"

    async def ask(self, what, body=b""):
        reply = await self._client.request(f"test.{self.name}.{what}", body, timeout=ASK_S)
        return json.loads(reply.data)

    async def generate(self, request, prompt, max_tokens, kv=None):
        body = {"id": request, "prompt": prompt, "max_tokens": max_tokens, "kv": kv}
        return await self.ask("gen", json.dumps(body).encode())

    async def is_free(self):
        """No block is in use or pinned (and none is cached any more)."""
        return await self.ask("free") is True

    async def freed_within(self, deadline_s):
        """Seconds until every block was free."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        while not await self.is_free():
            assert loop.time() - start_s < deadline_s, f"{self.name} still holds blocks"
            await asyncio.sleep(0.01)
        return loop.time() - start_s

    async def stats(self):
        return await self.ask("stats")

    def family(self):
        root = psutil.Process(self.process.pid)
        return [*root.children(recursive=True), root]

    async def kill(self):
        """SIGKILL for all of it, children first, as a crash."""
        self.signal(signal.SIGKILL)
        await self.process.wait()

    def signal(self, what):
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(what)

    async def stop(self):
        if self.process.returncode is not None:
            return
        family = self.family()
        self.process.stdin.close()
        try:
            async with asyncio.timeout(20):
                await self.process.wait()
        except TimeoutError:
            pass
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await self.process.wait()


async def client_of(url):
    return await nats.connect(url)
