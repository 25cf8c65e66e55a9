"""A prefill and a decode agent under disorder: the cores, engines that keep their promises, and a
network, gateway, scheduler and operator that keep none."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from components.domain.outcomes import Ask, Count, Record, Send
from components.worker.core import WorkerCore
from components.worker.engine import JobFailed, Moved, MoveFailed, Prefilled
from components.worker.outcomes import (
    Abort,
    BeginStream,
    DropStream,
    FailStream,
    KvHere,
    OpenStream,
    ReleaseKv,
    SendKv,
    StopSending,
    Submit,
)
from components.worker.settings import WorkerSettings
from schemas.attempt import AttemptReported, CancelAttempt
from schemas.body import FetchBody
from tests.unit.worker.agent import ABLE, body, heartbeat, run

SETTINGS = WorkerSettings(
    lease_ms=2_000,
    hold_ms_max=6_000,
    offer_wait_ms=6_000,
    room_wait_ms=3_000,
    ready_wait_ms=2_000,
    attempts_max=6,
    ended_ttl_s=10,
)
TICK_S = 0.1


class Machine:
    """One agent with an engine: which jobs it has, in what state, and its streams."""

    def __init__(self, name, world, epoch):
        self.name, self.world, self.epoch = name, world, epoch
        self.core = WorkerCore(name, epoch, SETTINGS, ABLE)
        self.jobs = {}  # key -> computing | pinned | sending | parked | decoding
        self.streams = {}  # key -> choices left, None before it begins
        self.refused = set()
        self.fetching = []

    def do(self, outcomes):
        for outcome in outcomes or ():
            self.one(outcome)

    def one(self, outcome):  # noqa: C901, PLR0912  (a table)
        jobs, now_s = self.jobs, self.world.now_s
        match outcome:
            case Send():
                self.world.sent(self, outcome)
            case Ask():
                assert isinstance(outcome.message, FetchBody)
                self.fetching.append((outcome.message.request_id, outcome.message.attempt))
            case Submit():
                key = outcome.job.key
                assert key not in jobs, "one key is in use once"
                if self.world.rng.random() < 0.05:
                    self.refused.add(key)
                    self.do(self.core.on_refused(key, "full", now_s))
                    return
                self.refused.discard(key)
                states = {"prefill": "computing", "decode": "parked", "aggregated": "decoding"}
                jobs[key] = states[outcome.job.phase]
                self.do(self.core.on_submitted(key, now_s))
            case Abort():
                # Both may have been wanted at once, before the engine could refuse.
                known = outcome.key in jobs or outcome.key in self.refused
                assert known, "aborted what the engine never had"
                jobs.pop(outcome.key, None)
            case KvHere():
                if outcome.key not in self.refused:
                    assert jobs[outcome.key] == "parked"
                    jobs[outcome.key] = "decoding"
            case SendKv():
                assert jobs[outcome.key] == "pinned"
                jobs[outcome.key] = "sending"
            case StopSending():
                assert jobs[outcome.key] == "sending"
                jobs[outcome.key] = "pinned"
            case ReleaseKv():
                assert jobs.pop(outcome.key) == "pinned", "freed under a transfer, or not pinned"
            case OpenStream():
                self.streams[outcome.key] = None
            case BeginStream():
                assert self.streams[outcome.key] is None
                self.streams[outcome.key] = len(outcome.starts)
            case DropStream() | FailStream():
                del self.streams[outcome.key]
            case Record() | Count():
                pass
            case other:
                raise AssertionError(other)

    def engine_works(self):
        """Some job goes on: what the engine then says."""
        if not self.jobs:
            return
        rng, now_s = self.world.rng, self.world.now_s
        key = rng.choice(sorted(self.jobs))
        state = self.jobs[key]
        if rng.random() < 0.05 and state in ("computing", "decoding", "parked"):
            del self.jobs[key]
            self.do(self.core.on_engine(JobFailed(key), now_s))
        elif state == "computing":
            self.jobs[key] = "pinned"
            self.do(self.core.on_engine(Prefilled(key, 33, 3, 33_000, 0, {}), now_s))
        elif state == "sending":
            self.jobs[key] = "pinned"
            event = MoveFailed(key) if rng.random() < 0.2 else Moved(key, 33_000)
            self.do(self.core.on_engine(event, now_s))
        elif state == "decoding":
            left = self.streams[key] - 1
            if left:
                self.streams[key] = left
            else:
                del self.jobs[key], self.streams[key]
            self.do(self.core.on_choice_ended(key, ["stop", None, 0], 3, now_s))


class World:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.now_s = 100.0
        self.network = []
        self.attempts = {}
        self.dispatched = 0
        self.gateway_lives = True
        self.reports = []
        self.p, self.d = Machine("prefill-0", self, 1), Machine("decode-0", self, 1)

    def sent(self, machine, send):
        if isinstance(send.message, AttemptReported):
            self.reports.append(send.message)
        else:
            self.network.append((send.to[0], send.message, machine.epoch))

    def machine(self, name):
        return self.p if name == self.p.name else self.d

    def dispatch(self):
        request = f"r{self.rng.randrange(5)}"
        attempt = self.attempts.get(request, 0) + self.rng.choice([0, 1, 1, 1])
        self.attempts[request] = attempt = max(1, attempt)
        self.dispatched += 1
        data = None if self.rng.random() < 0.3 else body(n=self.rng.choice([1, 2]))
        both = self.rng.sample([(self.d, self.p, "decode"), (self.p, self.d, "prefill")], 2)
        for machine, peer, phase in both:
            if self.rng.random() < 0.1:
                continue
            message = run(
                request,
                attempt,
                phase,
                transfer_id=f"{request}.{attempt}",
                peer=peer.name,
                peer_epoch=peer.epoch,
                worker_epoch=machine.epoch,
                dispatch_seq=self.dispatched,
                body=data,
            )
            machine.do(machine.core.on_room(self.rng.choice([2, 200]), self.now_s))
            machine.do(machine.core.on_run(message, self.now_s))

    def cancel(self):
        if not self.attempts:
            return
        request = self.rng.choice(sorted(self.attempts))
        cancel = CancelAttempt(request_id=request, attempt=self.attempts[request])
        for machine in (self.p, self.d):
            if self.rng.random() < 0.8:
                machine.do(machine.core.on_cancel(cancel, self.now_s))

    def network_moves(self):
        if not self.network:
            return
        place = self.rng.randrange(len(self.network))
        to, message, epoch = self.network[place]
        fate = self.rng.random()
        if fate < 0.9:
            del self.network[place]
        if fate > 0.1:
            machine = self.machine(to)
            machine.do(machine.core.on_handoff(message, epoch, self.now_s))

    def body_arrives(self):
        machine = self.rng.choice([self.p, self.d])
        if machine.fetching:
            key = machine.fetching.pop()
            data = None if self.rng.random() < 0.2 else body()
            machine.do(machine.core.on_body(key, data, self.now_s))

    def p_works(self):
        self.p.engine_works()

    def d_works(self):
        self.d.engine_works()

    def dies(self):
        machine = self.rng.choice([self.p, self.d])
        fresh = Machine(machine.name, self, machine.epoch + 1)
        if machine is self.p:
            self.p = fresh
        else:
            self.d = fresh

    def time_passes(self, seconds):
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            for machine in (self.p, self.d):
                for other in (self.p, self.d):
                    beat = heartbeat(other.name, epoch=other.epoch)
                    machine.do(machine.core.on_heartbeat(beat, self.now_s))
                if self.gateway_lives:
                    beat = heartbeat("gateway-0", "gateway", 7)
                    machine.do(machine.core.on_heartbeat(beat, self.now_s))
                machine.do(machine.core.on_tick(self.now_s))

    def check(self):
        for machine in (self.p, self.d):
            here = set(machine.core.running)
            assert set(machine.jobs) <= here, "the engine has what the core forgot"
            assert set(machine.streams) <= here


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_nothing_leaks_whatever_happens_between_two_agents(seed):
    world = World(seed)
    acts = [
        (world.dispatch, 4),
        (world.network_moves, 12),
        (world.p_works, 8),
        (world.d_works, 5),
        (world.body_arrives, 3),
        (world.cancel, 1),
        (world.dies, 0.3),
        (lambda: world.time_passes(world.rng.choice([0.1, 0.5, 2.0])), 2),
    ]
    for _ in range(150):
        act = world.rng.choices([a for a, _ in acts], [w for _, w in acts])[0]
        act()
        world.check()
    # The gateway dies, the network with it: everything must come to its end.
    world.gateway_lives = False
    world.network.clear()
    for machine in (world.p, world.d):
        for key in machine.fetching:
            machine.do(machine.core.on_body(key, None, world.now_s))
    world.time_passes(30)
    for machine in (world.p, world.d):
        assert machine.core.is_idle, machine.core.running
        assert (machine.jobs, machine.streams, machine.core.leases) == ({}, {}, 0)
        assert not machine.core._transfers
        assert len(machine.core._memory) == 0
