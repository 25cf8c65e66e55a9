"""One end of a link in a process of its own: python -m tests.engine.connector.link_end JSON.

JSON: ``end``, ``url``, ``keys`` (a key file per end), ``scenario``, and where it is not Gloo's:
``kind`` and ``device``. Says what it saw as one line.
"""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector.control import Control
from components.worker.vllm.connector.link import LinkFailed, LinkPlace, LinkTimedOut, opener
from components.worker.vllm.connector.rendezvous import NatsBoard, link_name

NAMES = ("prefill-0-engine-0", "decode-0-engine-0")
MIB = 1 << 20


class End:
    def __init__(self, end, url, keys, kind="gloo", device="cpu"):
        torch.set_num_threads(1)
        self.end = end
        self.device = torch.device(device)
        self.opener = opener(kind, self.device)
        self.bytes(1)  # a GPU is slow at the first touch, which is no link's fault
        self.control = Control(NAMES[end], 5 + end, url, key_file=Path(keys[end]))
        self.control.start(lambda _: None, lambda _: None)

    def open(self, number, wait_s=5.0):
        name = link_name(*NAMES, 7, number)
        board = self.control.rendezvous.board(name, NAMES[1 - self.end])
        place = LinkPlace(self.device)
        try:
            return self.opener(board, self.end, place, time.monotonic() + wait_s)
        finally:
            self.control.rendezvous.forget(name)

    def bytes(self, size, value=0):
        return torch.full((size,), value, dtype=torch.uint8, device=self.device)

    def move(self, link, tensor, wait_s=5.0):
        """From P's end to D's."""
        how = link.send if self.end == 0 else link.receive
        how(tensor, time.monotonic() + wait_s).wait()


def throughput(end):
    """GB/s of each size, and ms to open."""
    began_s = time.monotonic()
    link = end.open(1)
    seen = {"open_ms": (time.monotonic() - began_s) * 1e3}
    for size in (32, 64 << 10, MIB, 16 * MIB, 64 * MIB):
        tensor = end.bytes(size, end.end)
        end.move(link, tensor)
        began_s = time.monotonic()
        for _ in range(5):
            end.move(link, tensor)
        seen[str(size)] = (time.monotonic() - began_s) / 5 * 1e3
        assert not tensor.any(), "what arrived is not what was sent"
    return seen


def killed(end):
    """P dies; D's wait ends with it."""
    link = end.open(1)
    if end.end == 0:
        time.sleep(0.3)
        os._exit(0)
    return failure(end, link, 5.0)


def silent(end):
    """P says nothing: D's deadline ends the wait, both close, and a new link works."""
    link = end.open(1)
    if end.end == 0:
        time.sleep(1.0)
    seen = failure(end, link, 0.5) if end.end == 1 else {}
    link.close()
    link.close()
    link = end.open(2)
    end.move(link, end.bytes(MIB))
    time.sleep(0.2)
    return seen


def closed(end):
    """Another thread closes the link under D's wait."""
    link = end.open(1)
    if end.end == 0:
        time.sleep(1.0)
        return {}
    threading.Timer(0.2, link.close).start()
    return failure(end, link, 5.0)


def alone(end):
    """D's end never comes."""
    if end.end == 1:
        return {}
    began_s = time.monotonic()
    try:
        end.open(1, wait_s=0.5)
    except LinkTimedOut as error:
        return {"error": str(error), "ms": (time.monotonic() - began_s) * 1e3}
    return {}


def froze(end):
    """D stops for good as soon as it has told where it listens; P's end must give up."""
    if end.end == 1:
        return {}
    command = [sys.executable, "-c", FROZEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as frozen:
        assert frozen.stdout is not None
        board = NatsBoard("a link", lambda _key, _value: None)
        key, value = frozen.stdout.readline().split()
        board.put(key, bytes.fromhex(value))
        began_s = time.monotonic()
        try:
            link = end.opener(board, 0, LinkPlace(end.device), began_s + 1.0)
            # Which end calls the other is Gloo's choice; a kernel takes calls for a frozen process.
            link.receive(torch.zeros(MIB, dtype=torch.uint8), began_s + 1.0).wait()
        except LinkFailed as error:
            return {"error": str(error), "ms": (time.monotonic() - began_s) * 1e3}
        finally:
            frozen.kill()
    return {}


#: D's end, which stops before it can take a connection.
FROZEN = """
import os, signal, time, torch
from components.worker.vllm.connector.gloo import open_gloo
from components.worker.vllm.connector.link import LinkPlace
from components.worker.vllm.connector.rendezvous import NatsBoard

def tell_and_stop(key, value):
    print(key, value.hex(), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

board = NatsBoard("a link", tell_and_stop)
open_gloo(board, 1, LinkPlace(torch.device("cpu")), time.monotonic() + 5)
"""


def cycles(end):
    """Open, use, close, again and again: nothing is left behind."""
    seen = []
    for number in range(1, 24 if end.device.type == "cpu" else 10):
        link = end.open(number)
        end.move(link, end.bytes(64))
        if end.end == 0:
            time.sleep(0.02)
        link.close()
        del link
        gc.collect()
        seen.append([len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task")])
    return {"first": seen[2], "last": seen[-1], "boards": len(end.control.rendezvous)}


def failure(end, link, wait_s):
    began_s = time.monotonic()
    try:
        link.receive(end.bytes(MIB), began_s + wait_s).wait()
    except LinkFailed as error:
        kind = type(error).__name__
        return {"error": kind, "ms": (time.monotonic() - began_s) * 1e3}
    return {"error": None}


def own_stdout():
    """The standard output for us alone: libraries that talk there talk to standard error."""
    ours = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return ours


if __name__ == "__main__":
    answers = own_stdout()
    told = json.loads(sys.argv[1])
    scenario = told.pop("scenario")
    end = End(**told)
    answers.write("up\n")
    sys.stdin.readline()  # the other end is up too
    result = globals()[scenario](end)
    end.control.stop()
    answers.write(json.dumps(result))
    answers.flush()
