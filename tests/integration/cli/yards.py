"""A `switchyard up` held from outside, as a user holds it."""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import psutil

from components.cli.main import main
from components.cli.rundir import RunDir, RunFile

SWITCHYARD = Path(sys.executable).with_name("switchyard")
FAST = "constant:ttft_ms=5,itl_ms=1"
READY_S = 40.0
WITHIN_S = 20.0


def until(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """The first true value of the condition; fails when there is none in time."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return value


def environment() -> dict[str, str]:
    """Ours without what would change a yard."""
    hidden = ("SWITCHYARD_", "NATS_URL", "VLLM_")
    return {k: v for k, v in os.environ.items() if not k.startswith(hidden)}


def switchyard(*words: object, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [SWITCHYARD, *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def called(*words: object) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own: sooner there, and its coverage counts."""
    command = list(map(str, words))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(command)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


class Yard:
    """A running `up`; ``lines`` is what it wrote on standard output."""

    def __init__(self, data: Path, words: Sequence[str]) -> None:
        self.data = data
        self._errors = data.with_suffix(".stderr")
        command = [SWITCHYARD, "up", "--port", "0", "--udp-port", "0", "--data", data, *words]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                list(map(str, command)),
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.lines: list[str] = []
        self.url = ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait_until_ready(self) -> None:
        try:
            line = self._queue.get(timeout=READY_S)
        except queue.Empty:
            line = None
        assert line is not None, f"no line on standard output:\n{self.said()}"
        self.lines.append(line)
        self.url = line.removeprefix("ready ")

    def said(self) -> str:
        """What it wrote on standard error."""
        return self._errors.read_text()

    def page(self) -> RunFile:
        page = RunDir(self.data).read()
        assert page is not None, "no page"
        return page

    def pid(self, name: str) -> int | None:
        return self.page().processes[name].pid

    def family(self) -> list[psutil.Process]:
        """Every process of the yard but `up` itself."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Another command on this yard, in this process."""
        return called(*words, "--data", self.data)

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if found["ok"] else 1)
        return found

    def client(self) -> httpx.Client:
        # Never through a proxy: the address is on this machine.
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    def complete(self, prompt: str = "Which track is free?", tokens: int = 8) -> httpx.Response:
        """One completion, not streamed."""
        with self.client() as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
            return client.post("/v1/completions", json=body)

    def serves(self) -> bool:
        """Does a request succeed now?"""
        try:
            return self.complete(tokens=1).status_code == 200
        except (httpx.TransportError, LookupError):  # nobody listens, or no model is known yet
            return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        """The exit code, with the rest of standard output in ``lines``."""
        code = self.process.wait(60)
        self._reader.join()
        while (line := self._queue.get(timeout=1)) is not None:
            self.lines.append(line)
        return code

    def clean_up(self) -> None:
        """Whatever happened, nothing of it lives on."""
        if self.process.poll() is None:
            for child in self.family():
                child.kill()
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def yard(data: Path, *words: str) -> Iterator[Yard]:
    """A yard that is ready."""
    here = Yard(data, words)
    try:
        here.wait_until_ready()
        yield here
    finally:
        here.clean_up()


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
