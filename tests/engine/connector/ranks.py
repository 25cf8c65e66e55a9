"""Ranks without engines: real movers, links and NATS around small made-up KV caches."""

import threading
import time

import pytest

torch = pytest.importorskip("torch")

from components.worker.vllm.connector.blocks import KvBlocks  # noqa: E402
from components.worker.vllm.connector.config import ConnectorConfig  # noqa: E402
from components.worker.vllm.connector.gloo import open_gloo  # noqa: E402
from components.worker.vllm.connector.link import LinkFailed  # noqa: E402
from components.worker.vllm.connector.moving import RankMover  # noqa: E402
from components.worker.vllm.connector.orders import (  # noqa: E402
    Finished,
    Orders,
    Pin,
    PullOrder,
)

BLOCKS = 64
WAIT_S = 20.0


def cache(seed, device="cpu"):
    """Three layers, one of them with another shape and type, and strides that are not plain."""
    torch.manual_seed(seed)
    plain = torch.randn(BLOCKS, 2, 8, 4)
    turned = torch.randn(8, BLOCKS, 2, 4).permute(1, 2, 0, 3)
    odd = torch.randn(BLOCKS, 1, 8, 6).to(torch.bfloat16)
    return [layer.to(device) for layer in (plain, turned, odd)]


class Disturbed:
    """A link on which the test can wait, or which it breaks at the n-th tensor."""

    def __init__(self, link, disturbance):
        self._link = link
        self._disturbance = disturbance

    def __getattr__(self, name):
        return getattr(self._link, name)

    def send(self, tensor, deadline_s):
        self._disturbance.pass_by(self._link)
        return self._link.send(tensor, deadline_s)


class Disturbance:
    """What happens at the n-th tensor that is sent (0: never), or from there on (``always``)."""

    def __init__(self, opener=open_gloo):
        self._opener = opener
        self.at = 0
        self.always = False
        self.hold = False
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.sent = 0
        self.opened = 0

    def pass_by(self, link):
        self.sent += 1
        if not self.at or (self.sent < self.at if self.always else self.sent != self.at):
            return
        self.reached.set()
        if self.hold:
            self.go_on.wait(WAIT_S)
        else:
            link.close()
            raise LinkFailed("broken by the test")

    def opener(self):
        def open_disturbed(board, end, place, deadline_s):
            link = self._opener(board, end, place, deadline_s)
            self.opened += 1
            return Disturbed(link, self)

        return open_disturbed


class RankInTest:
    """One mover, its cache, and what it has named so far."""

    def __init__(
        self, worker, epoch, server, *, rank=0, ranks=1, seed=0,
        opener=open_gloo, device="cpu", **settings,
    ):  # fmt: skip
        name = f"{worker}-engine-{rank}"
        key_file = str(server.key_file("connector", name))
        config = ConnectorConfig(
            worker=worker, epoch=epoch, nats_url=server.url, nats_key_file=key_file, **settings
        )
        self.layers = cache(seed, device)
        self.disturbance = Disturbance(opener)
        kv = KvBlocks(self.layers)
        self.mover = RankMover(config, rank, ranks, kv, self.disturbance.opener())
        self.named = Finished()
        self.epoch = epoch
        self.worker = worker

    def start(self):
        self.mover.start()
        return self

    def pin(self, transfer, blocks, lease_ms=60_000):
        pin = Pin(transfer, f"p-{transfer}", tuple(blocks), lease_ms)
        self.mover.apply(Orders(pins=[pin]))

    def pull(self, transfer, source, blocks, first=0, refused=""):
        order = PullOrder(
            transfer, f"d-{transfer}", source.worker, source.epoch, first, tuple(blocks), refused
        )
        self.mover.apply(Orders(pulls=[order]))

    def stage(self, transfer, source, count):
        order = PullOrder(
            transfer, f"d-{transfer}", source.worker, source.epoch, 0, tuple(range(count))
        )
        self.mover.apply(Orders(stages=[order]))

    def cancel(self, transfer):
        self.mover.apply(Orders(cancels=[f"d-{transfer}"]))

    def poll(self):
        """As vLLM does each step; a request is never named twice."""
        finished = self.mover.finished()
        for kind in ("sent", "received", "failed"):
            have, new = getattr(self.named, kind), getattr(finished, kind)
            assert not have & new
            have.update(new)
        assert self.named.failed <= self.named.received

    def holds(self, blocks, source, source_blocks):
        """Are these blocks here what those are there?"""
        return all(
            torch.equal(mine[list(blocks)], other[list(source_blocks)])
            for mine, other in zip(self.layers, source.layers, strict=True)
        )


def until(condition, *ranks, deadline_s=WAIT_S):
    """Poll all ranks until the condition is true; returns how long it took."""
    began_s = time.monotonic()
    while True:
        for rank in ranks:
            rank.poll()
        if condition():
            return time.monotonic() - began_s
        assert time.monotonic() - began_s < deadline_s, "not in time"
        time.sleep(0.001)
