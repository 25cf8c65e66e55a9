"""Both tables in one small world of threads, links and memory, whose events come in any order.

P's blocks are overwritten as soon as they are freed. Messages are lost or late, links break, either
side stops for longer than a lease, requests are aborted and released at any moment. What must hold:
every pin is named sent once, every parked request received once, and nobody reads or writes what is
not his (any more).
"""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from components.worker.vllm.connector.config import ConnectorConfig
from components.worker.vllm.connector.core import Holdings, Pulls
from components.worker.vllm.connector.orders import (
    Answer,
    BeginPull,
    BeginStage,
    BreakLink,
    ForgetStaged,
    NameReceived,
    NameSent,
    Pin,
    PullOrder,
    SayRelease,
)
from components.worker.vllm.connector.rendezvous import link_name
from schemas.links import PullKv

BLOCK_BYTES = 1024
P_EPOCH, D_EPOCH = 100, 200
P, D = "prefill-0-engine-0", "decode-0-engine-0"
LEASE_MS, PULL_MS, ASK_S = 800, 600, 0.3
SETTINGS: dict[str, Any] = {
    "nats_url": "nats://127.0.0.1:1",
    "early_wait_ms": 100,
    "pull_timeout_ms": PULL_MS,
    "host_staging_bytes": 10 * BLOCK_BYTES,
    "link_tries_max": 3,
}
STEPS = 1_500


@dataclass
class Pipe:
    """A link: what P has put into it, D's receipt, and whether either end has closed it."""

    data: list[str] = field(default_factory=list)
    receipt: bool = False
    closed: bool = False


class World:
    """One P with a server thread, one D with a puller thread; ``step`` lets one thing happen."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.holdings = Holdings(ConnectorConfig("prefill-0", P_EPOCH, **SETTINGS), BLOCK_BYTES)
        self.pulls = Pulls(ConnectorConfig("decode-0", D_EPOCH, **SETTINGS), BLOCK_BYTES)
        self.memory: dict[int, str] = {}  # P's: block -> whose KV; absent: free, or another's
        self.pinned: dict[str, tuple[int, ...]] = {}  # P's request -> its blocks
        self.parked: dict[str, list[str]] = {}  # D's request -> what is in its blocks
        self.named: list[str] = []
        self.aborted: set[str] = set()
        self.ends: set[tuple[str, str]] = set()
        self.copies: dict[str, list[str]] = {}
        self.pipes: dict[str, Pipe] = {}
        self.bus: list[Any] = []  # messages on their way, as calls
        self.answers: dict[int, Answer] = {}
        self.asked = self.links = self.transfers = 0
        self.served: list[Answer] = []
        self.pull_jobs: list[BeginPull] = []
        self.stage_jobs: list[BeginStage] = []
        self.threads = [self.server(), self.puller()]
        self.quiet = False

    # What happens

    def step(self):
        self.now_s += self.random.random() * 0.03
        if self.random.random() < 0.01:
            self.now_s += 3 * LEASE_MS / 1e3  # somebody was stopped
        happens = [self.a_thread, self.a_thread, self.a_thread, self.a_message, self.a_tick]
        if not self.quiet:
            happens += [self.a_request, self.an_abort, self.a_break, self.a_release]
            weights = [9, 9, 9, 9, 6, 2, 0.7, 0.3, 0.3]
        else:
            weights = [9, 9, 9, 9, 6]
        self.random.choices(happens, weights)[0]()

    def a_thread(self):
        next(self.random.choice(self.threads))

    def a_message(self):
        if self.bus:
            self.bus.pop(self.random.randrange(len(self.bus)))()

    def a_tick(self):
        self.do(self.holdings.on_tick(self.now_s))
        self.do(self.pulls.on_tick(self.now_s))

    def a_request(self):
        """P has computed a prompt; D takes its request, with or without blocks."""
        self.transfers += 1
        name, blocks = f"t{self.transfers}", self.random.randint(1, 6)
        free = [b for b in range(1000) if b not in self.memory][:blocks]
        self.memory.update(dict.fromkeys(free, name))
        self.pinned[f"p-{name}"] = tuple(free)
        pin = Pin(name, f"p-{name}", tuple(free), LEASE_MS)
        self.bus.append(lambda: self.do(self.holdings.pin(pin, self.now_s)))
        if self.random.random() < 0.5:
            self.do(self.pulls.stages.order(self.an_order(name, blocks, 0)))
            self.bus.append(lambda: self.park(name, blocks))
        elif self.random.random() < 0.9:
            self.park(name, blocks)

    def an_order(self, name, blocks, first):
        return PullOrder(
            name, f"d-{name}", "prefill-0", P_EPOCH, first, tuple(range(first, blocks))
        )

    def park(self, name, blocks):
        self.parked[f"d-{name}"] = []
        first = self.random.randrange(blocks)
        self.do(self.pulls.order(self.an_order(name, blocks, first), self.now_s))

    def an_abort(self):
        self.abort(f"d-{self.a_recent_transfer()}")

    def a_recent_transfer(self):
        """Or one that is still to come."""
        return f"t{max(1, self.transfers + self.random.randint(-4, 1))}"

    def abort(self, request):
        self.aborted.add(request)
        self.do(self.pulls.cancel(request, self.now_s))

    def a_break(self):
        if self.pipes:
            self.random.choice(list(self.pipes.values())).closed = True

    def a_release(self):
        name = self.a_recent_transfer()
        self.do(self.holdings.release(name, P_EPOCH, "cancelled", self.now_s))

    def send(self, call):
        if self.quiet or self.random.random() < 0.95:
            self.bus.append(call)

    # What the tables want

    def do(self, outcomes):
        for outcome in outcomes:
            self.ends.add((type(outcome).__name__, getattr(outcome, "reason", "")))
            self.does[type(outcome)](outcome)

    @property
    def does(self):
        return {
            Answer: self.answer,
            BreakLink: lambda it: setattr(self.pipes.setdefault(it.link, Pipe()), "closed", True),
            NameSent: self.name_sent,
            BeginPull: self.pull_jobs.append,
            BeginStage: self.stage_jobs.append,
            ForgetStaged: lambda it: self.copies.pop(it.request_id),
            NameReceived: self.name_received,
            SayRelease: self.say,
        }

    def answer(self, answer):
        if answer.refused is None:
            self.served.append(answer)
        self.send(lambda: self.answers.update({answer.ticket: answer}))

    def name_sent(self, name):
        for block in self.pinned.pop(name.request_id):
            del self.memory[block]
        self.named.append(name.request_id)

    def name_received(self, name):
        got = self.parked.pop(name.request_id)
        assert name.failed or set(got) == {name.transfer_id}, "wrong bytes"
        self.named.append(name.request_id)

    def say(self, said):
        self.send(
            lambda: self.do(
                self.holdings.release(said.transfer_id, said.epoch, said.reason, self.now_s)
            )
        )

    # Threads; at each ``yield`` anything may happen

    def server(self):
        while True:
            yield
            if not self.served:
                continue
            pull = self.served.pop(0).pull
            pipe = self.pipes.setdefault(pull.link, Pipe())
            until_s = self.now_s + PULL_MS / 1e3
            yield
            blocks = self.holdings.begin(pull) if self.holdings.is_current(pull.link) else None
            if blocks is not None:
                read = []
                for block in blocks:
                    yield
                    assert self.memory.get(block) == pull.transfer_id, "read after free"
                    read.append(self.memory[block])
                pipe.data = read
                while not (pipe.receipt or pipe.closed or self.now_s > until_s):
                    yield
                if pipe.receipt:
                    self.do(self.holdings.on_sent(pull, self.now_s))
                    pipe.data, pipe.receipt = [], False
                    continue
            pipe.closed = True
            self.do(self.holdings.on_link_closed(pull.link, self.now_s))

    def puller(self):
        self.link = ""
        while True:
            yield
            if self.pull_jobs:
                yield from self.pull(self.pull_jobs.pop(0))
            elif self.stage_jobs:
                yield from self.stage(self.stage_jobs.pop(0).order)

    def pull(self, job):
        order = job.order
        if not self.pulls.begin(order.request_id):
            return
        staged = self.pulls.stages.is_whole(order.request_id)
        if staged:
            yield
            self.write(order, self.copies[order.request_id])
        else:
            wanted = lambda: not self.pulls.is_cancelled(order.request_id)  # noqa: E731
            got = yield from self.fetch(order, job.deadline_s, wanted)
            if got is None:
                failed = self.pulls.on_failed(order.request_id, "transfer_failed", "", self.now_s)
                self.do(failed)
                return
            self.write(order, got)
        self.do(self.pulls.on_done(order.request_id, 1, self.now_s))
        if not staged:
            yield from self.confirm(order)

    def write(self, order, got):
        assert order.request_id in self.parked, "written into blocks of others"
        self.parked[order.request_id] = got

    def stage(self, order):
        stages = self.pulls.stages
        if not stages.begin(order.request_id):
            return
        wanted = lambda: stages.is_wanted(order.request_id)  # noqa: E731
        got = yield from self.fetch(order, self.now_s + PULL_MS / 1e3, wanted)
        if got is None:
            self.do(stages.on_failed(order.request_id))
            return
        self.copies[order.request_id] = got
        self.do(stages.on_whole(order.request_id))
        yield from self.confirm(order)

    def fetch(self, order, deadline_s, wanted):
        """What came over the link, or None."""
        for _ in range(20):
            if self.now_s >= deadline_s or not wanted():
                break
            if not self.link:
                self.links += 1
                self.link = link_name(P, D, D_EPOCH, self.links)
            if order.request_id in self.parked:
                self.pulls.on_link(order.request_id, self.link)
            refused = yield from self.ask(order, min(deadline_s, self.now_s + ASK_S))
            pipe = self.pipes.setdefault(self.link, Pipe())
            if refused in {"stale_link", "no word"}:
                self.drop()
            elif refused is None:
                while not (pipe.data or pipe.closed or self.now_s > deadline_s):
                    yield
                if pipe.data and not pipe.closed:
                    return pipe.data
                self.drop()
            elif refused != "busy":
                break
            yield
        return None

    def ask(self, order, deadline_s):
        self.asked += 1
        ticket = self.asked
        pull = PullKv(
            transfer_id=order.transfer_id,
            sender=D,
            sender_epoch=D_EPOCH,
            epoch=P_EPOCH,
            link=self.link,
            first_block=order.first_block,
            blocks=len(order.blocks),
            block_bytes=BLOCK_BYTES,
            chunk_blocks=16,
        )
        self.send(lambda: self.do(self.holdings.on_pull(ticket, pull, self.now_s)))
        while ticket not in self.answers:
            if self.now_s > deadline_s:
                return "no word"
            yield
        return self.answers[ticket].refused

    def confirm(self, order):
        yield
        pipe = self.pipes[self.link]
        if pipe.closed:
            self.say(SayRelease(order.transfer_id, "prefill-0", P_EPOCH, "consumed"))
            self.drop()
        pipe.receipt = True
        while pipe.receipt and not pipe.closed:  # lockstep: the next transfer comes after it
            yield

    def drop(self):
        self.pipes[self.link].closed = True
        self.link = ""

    def settle(self):
        """No more requests and no more faults."""
        self.quiet = True
        for _ in range(20_000):
            if not (self.pinned or self.parked or self.bus or self.pulls.stages.bytes):
                return
            self.step()
            if not self.bus and not self.parked:
                # These get no blocks any more; what is of others should not be here.
                for request in set(self.copies) - self.aborted - set(self.named):
                    self.abort(request)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_order_of_events_every_promise_is_kept_once(seed):
    world = World(seed)
    for _ in range(STEPS):
        world.step()
    world.settle()
    assert world.pinned == {}
    assert world.parked == {}
    assert world.copies == {}
    assert world.memory == {}
    assert len(world.named) == len(set(world.named))
    assert (len(world.holdings), len(world.pulls), world.pulls.stages.bytes) == (0, 0, 0)


def test_the_worlds_are_not_all_calm_or_all_lost():
    """The test above says something only if transfers of every kind are among them."""
    ends: set[tuple[str, str]] = set()
    for seed in range(30):
        world = World(seed)
        for _ in range(STEPS):
            world.step()
        ends |= world.ends
    assert ends >= {
        ("ForgetStaged", ""),
        ("NameSent", "consumed"),
        ("NameSent", "lease_expired"),
        ("NameSent", "cancelled"),
        ("NameReceived", "consumed"),
        ("NameReceived", "transfer_failed"),
        ("NameReceived", "cancelled"),
    }
