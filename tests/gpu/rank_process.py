"""A rank without an engine in a process of its own: python -m tests.gpu.rank_process JSON.

JSON: ``worker``, ``epoch``, ``url``, ``keys`` (connector to key file), ``seed`` of its cache,
``device``, ``settings``. Then one command a line, as ``[name, arguments...]``; one answer a line.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector.link import opener
from tests.engine.connector.link_end import own_stdout
from tests.engine.connector.ranks import RankInTest, cache, until


class Rank:
    def __init__(self, worker, epoch, url, keys, seed, device, settings):
        server = SimpleNamespace(url=url, key_file=lambda _, name: Path(keys[name]))
        self.device = device
        open_link = opener("nccl", torch.device(device))
        self.rank = RankInTest(
            worker, epoch, server, seed=seed, opener=open_link, device=device, **settings
        )
        torch.cuda.synchronize()
        self.rank.start()

    def pin(self, transfer, blocks, lease_ms):
        self.rank.pin(transfer, blocks, lease_ms)

    def pull(self, transfer, source, epoch, blocks, first):
        self.rank.pull(transfer, SimpleNamespace(worker=source, epoch=epoch), blocks, first)

    def stage(self, transfer, source, epoch, count):
        self.rank.stage(transfer, SimpleNamespace(worker=source, epoch=epoch), count)

    def until(self, kind, count):
        """Seconds until so many requests were named."""
        return until(lambda: len(getattr(self.rank.named, kind)) >= count, self.rank)

    def until_staged(self):
        return until(lambda: self.rank.mover.staged_bytes > 0, self.rank)

    def named(self, kind):
        return sorted(getattr(self.rank.named, kind))

    def holds(self, blocks, seed, others):
        """Are these blocks here what those are in the cache of that seed?"""
        torch.cuda.synchronize()
        other = SimpleNamespace(layers=cache(seed, self.device))
        return self.rank.holds(blocks, other, others)

    def stop_at(self, number):
        """The n-th tensor waits for ``go_on``."""
        self.rank.disturbance.at, self.rank.disturbance.hold = number, True

    def until_stopped(self):
        return self.rank.disturbance.reached.wait(20)

    def go_on(self):
        self.rank.disturbance.go_on.set()

    def pinned(self):
        return self.rank.mover.pinned_blocks


def main():
    answers = own_stdout()
    rank = Rank(**json.loads(sys.argv[1]))
    answers.write("ready\n")
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(rank, name)(*arguments)) + "\n")
    rank.rank.disturbance.go_on.set()
    rank.rank.mover.stop()


main()
