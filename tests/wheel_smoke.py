"""The built wheel, installed away from this folder, serves a streamed chat and ends on Ctrl-C.

Run by `make wheel-smoke`. The new environment sees the locked dependencies of this one through a
.pth file instead of downloading them again; our packages come from the wheel. The working folder
holds modules of our names that would end whoever imported them.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

ROOT = Path(__file__).parents[1]
OURS = ["schemas", "bus", "components"]
PYTHON = Path(sys.executable)
READY_S = 30
DRAIN_S = 20

WHO_OWNS_US = f"""
import importlib, importlib.metadata, json
owners = importlib.metadata.packages_distributions()
print(json.dumps({{n: [importlib.import_module(n).__file__, owners[n]] for n in {OURS}}}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="switchyard-smoke-") as folder:
        place = Path(folder)
        wheel = build(place / "dist")
        scripts = install(wheel, place / "env")
        elsewhere = decoys(place / "elsewhere")
        come_from_the_wheel(scripts, elsewhere)
        serves_a_chat(scripts / "switchyard", elsewhere, place / "data")
    print(f"wheel smoke: {wheel.name} holds")


def build(into: Path) -> Path:
    run([PYTHON, "-m", "build", "--wheel", "--no-isolation", "--outdir", into, ROOT], ROOT)
    (wheel,) = into.glob("*.whl")
    return wheel


def install(wheel: Path, env: Path) -> Path:
    """The scripts folder of a new environment with this wheel and nothing else of its own."""
    run([PYTHON, "-m", "venv", "--without-pip", env], ROOT)
    scripts = env / "bin"
    pip: list[str | Path] = [PYTHON, "-m", "pip", "--python", scripts / "python", "--quiet"]
    run([*pip, "install", "--no-deps", "--no-index", wheel], ROOT)
    locked, own = (
        Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], ROOT))
        for python in (PYTHON, scripts / "python")
    )
    # A path in a .pth is only searched: the .pth of our editable install over there is not read.
    (own / "locked.pth").write_text(f"{locked}\n")
    # Where pip would have put it: the server's wheel brings a script, not a package.
    (scripts / "nats-server").symlink_to(PYTHON.with_name("nats-server"))
    return scripts


def decoys(folder: Path) -> Path:
    folder.mkdir()
    for name in OURS:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the decoy {name}.py came first')\n")
    return folder


def come_from_the_wheel(scripts: Path, cwd: Path) -> None:
    for name, (file, owners) in json.loads(
        run([scripts / "python", "-P", "-c", WHO_OWNS_US], cwd)
    ).items():
        assert Path(file).is_relative_to(scripts.parent), f"{name} came from {file}"
        assert set(owners) == {"switchyard"}, f"{name} is owned by {owners}"
    said = run([scripts / "switchyard", "--version"], cwd)
    version = run([PYTHON, "-m", "hatchling", "version"], ROOT)
    assert version in said.split(), f"--version said {said!r}, the project says {version}"


def serves_a_chat(script: Path, cwd: Path, data: Path) -> None:
    with Started([script, "up", "--port", "0", "--data", data], cwd) as started:
        assert streamed_chat(started.url()).strip(), "the chat streamed no text"
        code = started.ctrl_c()
        assert code == 0, f"Ctrl-C: exit code {code}, not 0"
        assert started.left() == [], f"left behind: {started.left()}"
        assert started.next_line(1) is None, "standard output has more than the ready line"


class Started:
    """A process in a process group of its own, as in a terminal; nothing of it outlives us."""

    def __init__(self, command: Sequence[str | Path], cwd: Path) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._family: list[psutil.Process] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self._family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
        for child in self.left():
            child.kill()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def next_line(self, within_s: float) -> str | None:
        """A line of its standard output, None at the end."""
        try:
            return self._lines.get(timeout=within_s)
        except queue.Empty:
            raise AssertionError(f"no line after {within_s} s") from None

    def url(self) -> str:
        began = time.monotonic()
        line = self.next_line(READY_S)
        assert line is not None, f"ended with {self.process.wait()} before it was ready"
        word, _, url = line.partition(" ")
        assert word == "ready", f"the first line on standard output is {line!r}"
        assert url.startswith("http://"), f"no address: {line!r}"
        print(f"ready after {time.monotonic() - began:.1f} s")
        return url

    def ctrl_c(self) -> int:
        """The exit code after what a terminal sends to the whole group."""
        self._family = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(DRAIN_S)

    def left(self) -> list[psutil.Process]:
        return [child for child in self._family if child.is_running()]


def streamed_chat(url: str) -> str:
    """The text of one streamed chat; it has to end with [DONE]."""
    # Never through a proxy: the address is on this machine.
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        body = {
            "model": model,
            "stream": True,
            "max_tokens": 16,
            "messages": [{"role": "user", "content": "Which track is free?"}],
        }
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1:] == ["[DONE]"], f"the stream ended with {events[-1:]}"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def environment() -> dict[str, str]:
    """Ours without what would let this folder's packages in."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    return {key: value for key, value in os.environ.items() if key not in hidden}


def run(command: Sequence[str | Path], cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
