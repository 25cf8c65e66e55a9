"""What a rank holds and wants: every promise to vLLM is closed once, in time, and only if open."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.worker.vllm.connector.config import ConnectorConfig
from components.worker.vllm.connector.core import Holdings, Pulls
from components.worker.vllm.connector.orders import (
    Answer,
    BeginPull,
    BreakLink,
    NameReceived,
    NameSent,
    Pin,
    PullOrder,
    SayRelease,
)
from components.worker.vllm.connector.rendezvous import link_name
from schemas.links import PullKv

P_EPOCH, D_EPOCH = 100, 200
BLOCK_BYTES = 1024
P, D = "prefill-0-engine-0", "decode-0-engine-0"


def config(**changes):
    settings = {
        "worker": "prefill-0",
        "epoch": P_EPOCH,
        "nats_url": "nats://127.0.0.1:1",
        "staging_bytes": 4 * BLOCK_BYTES,
        **changes,
    }
    return ConnectorConfig(**settings)


def pin(transfer="t1", request="r1", blocks=(7, 3, 9), lease_ms=5_000):
    return Pin(transfer, request, blocks, lease_ms)


def pull(transfer="t1", link=1, **changes):
    fields = {
        "transfer_id": transfer,
        "sender": D,
        "sender_epoch": D_EPOCH,
        "epoch": P_EPOCH,
        "link": link_name(P, D, D_EPOCH, link),
        "first_block": 0,
        "blocks": 3,
        "block_bytes": BLOCK_BYTES,
        "chunk_blocks": 16,
        **changes,
    }
    return PullKv(**fields)


def holding(now_s=0.0, **changes):
    holdings = Holdings(config(**changes), BLOCK_BYTES)
    assert holdings.pin(pin(), now_s) == []
    return holdings


def refusals(outcomes):
    return [o.refused for o in outcomes if isinstance(o, Answer)]


def names(outcomes):
    return [(o.request_id, o.reason) for o in outcomes if isinstance(o, NameSent)]


# P


def test_a_pull_is_accepted_served_and_frees_the_blocks_with_its_receipt():
    holdings = holding()
    (answer,) = holdings.on_pull(1, pull(), 0.1)
    assert (answer.refused, answer.chunk_blocks) == (None, 4)  # both ends' staging counts
    assert holdings.begin(pull()) == (7, 3, 9)
    (named,) = holdings.on_sent(pull(), 0.3)
    assert (named.request_id, named.reason, named.bytes_moved) == ("r1", "consumed", 3072)
    assert named.ms == pytest.approx(300)
    assert len(holdings) == 0


def test_a_partial_hit_gets_the_tail():
    holdings = holding()
    wanted = pull(first_block=2, blocks=1)
    assert refusals(holdings.on_pull(1, wanted, 0.0)) == [None]
    assert holdings.begin(wanted) == (9,)


def test_a_lease_that_ends_frees_what_nobody_reads_at_once():
    holdings = holding()
    assert holdings.on_tick(4.99) == []
    assert names(holdings.on_tick(5.0)) == [("r1", "lease_expired")]
    assert holdings.on_tick(6.0) == []


def test_a_request_cannot_ask_for_a_longer_lease_than_the_settings_allow():
    holdings = Holdings(config(lease_ms=1_000), BLOCK_BYTES)
    holdings.pin(pin(lease_ms=5_000), 0.0)
    assert names(holdings.on_tick(1.0)) == [("r1", "lease_expired")]


def test_a_lease_that_ends_in_mid_transfer_breaks_the_link_and_frees_when_its_thread_is_back():
    holdings = holding()
    holdings.on_pull(1, pull(), 4.0)
    holdings.begin(pull())
    assert holdings.on_tick(5.0) == [BreakLink(pull().link)]
    assert holdings.on_tick(5.1) == [], "once is enough"
    assert holdings.blocks == 3, "somebody still reads them"
    assert names(holdings.on_link_closed(pull().link, 5.2)) == [("r1", "lease_expired")]


def test_a_queued_pull_whose_lease_has_ended_reads_nothing():
    holdings = holding()
    holdings.on_pull(1, pull(), 4.9)
    assert names(holdings.on_tick(5.0)) == [("r1", "lease_expired")]
    assert holdings.begin(pull()) is None


def test_a_broken_link_leaves_the_blocks_for_another_try_over_a_new_one():
    holdings = holding()
    holdings.on_pull(1, pull(link=1), 0.0)
    holdings.begin(pull(link=1))
    assert holdings.on_link_closed(pull(link=1).link, 0.1) == []
    assert refusals(holdings.on_pull(2, pull(link=1), 0.2)) == ["stale_link"]
    assert refusals(holdings.on_pull(3, pull(link=2), 0.3)) == [None]
    assert holdings.begin(pull(link=1)) is None, "the old link's thread is too late"
    assert holdings.begin(pull(link=2)) == (7, 3, 9)
    assert holdings.on_sent(pull(link=1), 0.4) == []
    assert names(holdings.on_sent(pull(link=2), 0.5)) == [("r1", "consumed")]


def test_a_puller_that_has_given_its_link_up_makes_us_notice():
    holdings = holding()
    holdings.on_pull(1, pull(link=1), 0.0)
    holdings.begin(pull(link=1))
    outcomes = holdings.on_pull(2, pull(link=2), 0.1)
    assert outcomes[0] == BreakLink(pull(link=1).link)
    assert refusals(outcomes) == ["busy"]


def test_a_link_is_current_until_it_is_closed_or_a_newer_one_is_there():
    holdings = holding()
    assert not holdings.is_current(pull(link=1).link)
    holdings.on_pull(1, pull(link=1), 0.0)
    assert holdings.is_current(pull(link=1).link)
    holdings.on_link_closed(pull(link=1).link, 0.1)
    assert not holdings.is_current(pull(link=1).link)
    holdings.on_pull(2, pull(link=2), 0.2)
    assert holdings.is_current(pull(link=2).link)
    holdings.on_link_closed(pull(link=1).link, 0.3)
    assert holdings.is_current(pull(link=2).link), "an old link's end changes nothing"


def test_the_same_pull_twice_is_served_once():
    holdings = holding()
    assert refusals(holdings.on_pull(1, pull(), 0.0)) == [None]
    assert refusals(holdings.on_pull(2, pull(), 0.0)) == ["busy"]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"epoch": P_EPOCH - 1}, "stale_epoch"),
        ({"block_bytes": BLOCK_BYTES * 2}, "mismatch"),
        ({"first_block": 1}, "out_of_range"),
        ({"blocks": 4}, "out_of_range"),
        ({"link": "nonsense"}, "stale_link"),
        ({"sender": "decode-1-engine-0"}, "stale_link"),
        ({"sender_epoch": D_EPOCH + 1}, "stale_link"),
    ],
)
def test_a_pull_that_does_not_fit_is_refused_with_a_reason(changes, refused):
    holdings = holding()
    assert refusals(holdings.on_pull(1, pull(**changes), 0.0)) == [refused]
    assert holdings.begin(pull(**changes)) is None


def test_a_pull_may_overtake_the_step_that_pins():
    holdings = Holdings(config(), BLOCK_BYTES)
    assert holdings.on_pull(1, pull(), 0.0) == []
    assert refusals(holdings.pin(pin(), 0.01)) == [None]
    assert holdings.begin(pull()) == (7, 3, 9)


def test_a_pull_of_what_never_comes_is_refused_in_time():
    holdings = Holdings(config(early_wait_ms=500), BLOCK_BYTES)
    holdings.on_pull(1, pull(), 0.0)
    assert holdings.on_tick(0.49) == []
    assert refusals(holdings.on_tick(0.5)) == ["unknown_transfer"]


def test_a_release_may_overtake_the_step_that_pins():
    holdings = Holdings(config(), BLOCK_BYTES)
    assert holdings.release("t1", P_EPOCH, "cancelled", 0.0) == []
    assert names(holdings.pin(pin(), 0.1)) == [("r1", "cancelled")]
    assert refusals(holdings.on_pull(1, pull(), 0.2)) == ["unknown_transfer"]


def test_a_release_of_a_former_life_changes_nothing():
    holdings = holding()
    assert holdings.release("t1", P_EPOCH - 1, "cancelled", 0.0) == []
    assert len(holdings) == 1


def test_a_transfer_named_twice_does_not_take_the_first_ones_blocks():
    holdings = holding()
    assert names(holdings.pin(pin(request="r2"), 0.1)) == [("r2", "superseded")]
    assert names(holdings.on_tick(5.0)) == [("r1", "lease_expired")]


def test_more_than_the_table_holds_is_freed_at_once():
    holdings = holding(transfers_max=1)
    assert names(holdings.pin(pin("t2", "r2"), 0.0)) == [("r2", "refused")]


def test_a_closing_connector_takes_no_pull():
    holdings = holding()
    holdings.closing = True
    assert refusals(holdings.on_pull(1, pull(), 0.0)) == ["closing"]


@dataclass
class HoldingsWorld:
    """Drives ``Holdings`` at random, as threads, peers and vLLM might."""

    holdings: Holdings = field(default_factory=lambda: Holdings(config(), BLOCK_BYTES))
    now_s: float = 0.0
    pinned: dict[str, float] = field(default_factory=dict)
    reading: dict[str, PullKv] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    asked: int = 0
    broken: set[str] = field(default_factory=set)

    def take(self, outcomes):
        for outcome in outcomes:
            if isinstance(outcome, NameSent):
                assert outcome.request_id in self.pinned, "named, but not pinned (any more)"
                del self.pinned[outcome.request_id]
                self.named.append(outcome.request_id)
                assert outcome.transfer_id not in self.reading, "freed under a reader"
            elif isinstance(outcome, Answer):
                self.answered.append(outcome.ticket)
            else:
                self.broken.add(outcome.link)

    def step(self, action, transfer, link):
        self.now_s += 0.05
        name, wanted = f"t{transfer}", pull(f"t{transfer}", link=link)
        if action == "pin" and f"r{transfer}" not in (*self.pinned, *self.named):
            self.pinned[f"r{transfer}"] = self.now_s
            self.take(self.holdings.pin(pin(name, f"r{transfer}", lease_ms=1_000), self.now_s))
        elif action == "pull":
            self.asked += 1
            self.take(self.holdings.on_pull(self.asked, wanted, self.now_s))
        elif action == "begin" and self.holdings.begin(wanted) is not None:
            assert name not in self.reading, "two readers"
            self.reading[name] = wanted
        elif action == "sent" and name in self.reading:
            self.take(self.holdings.on_sent(self.reading.pop(name), self.now_s))
        elif action == "closed":
            self.reading = {k: v for k, v in self.reading.items() if v.link != wanted.link}
            self.take(self.holdings.on_link_closed(wanted.link, self.now_s))
        elif action == "release":
            self.take(self.holdings.release(name, P_EPOCH, "cancelled", self.now_s))
        self.take(self.holdings.on_tick(self.now_s))

    def settle(self):
        """Leases end, and threads come back: those whose link was broken, or at their deadline."""
        self.now_s += 2.0
        self.take(self.holdings.on_tick(self.now_s))
        for wanted in list(self.reading.values()):
            assert wanted.link in self.broken, "a reader outlives its lease, and nobody wakes it"
            self.step("closed", 0, int(wanted.link[-1]))


ACTIONS = st.sampled_from(["pin", "pull", "pull", "begin", "sent", "closed", "release"])


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 3), st.integers(1, 3)), max_size=60))
def test_whatever_happens_every_pinned_request_is_named_once_and_every_pull_answered(steps):
    world = HoldingsWorld()
    for step in steps:
        world.step(*step)
    world.settle()
    assert world.pinned == {}
    assert len(world.holdings) == 0
    assert len(world.named) == len(set(world.named))
    assert sorted(world.answered) == list(range(1, world.asked + 1))


# D


def order(request="r1", blocks=(4, 5), refused=""):
    return PullOrder("t1", request, "prefill-0", P_EPOCH, 1, blocks, refused)


def received(outcomes):
    return [(o.request_id, o.failed, o.reason) for o in outcomes if isinstance(o, NameReceived)]


def test_a_pull_that_is_done_is_named_once():
    pulls = Pulls(config(), BLOCK_BYTES)
    assert pulls.order(order(), 0.0) == [BeginPull(order(), 10.0)]
    assert pulls.begin("r1")
    assert not pulls.begin("r1"), "one thread only"
    assert received(pulls.on_done("r1", 2048, 0.1)) == [("r1", False, "consumed")]
    assert len(pulls) == 0


def test_a_failed_pull_is_named_as_received_and_failed_and_the_holder_hears_of_it():
    pulls = Pulls(config(), BLOCK_BYTES)
    pulls.order(order(), 0.0)
    pulls.begin("r1")
    named, release = pulls.on_failed("r1", "peer_lost", "gone", 0.1)
    assert received([named]) == [("r1", True, "peer_lost")]
    assert release == SayRelease("t1", "prefill-0", P_EPOCH, "peer_lost")


def test_an_order_that_cannot_be_pulled_fails_without_a_thread():
    outcomes = Pulls(config(), BLOCK_BYTES).order(order(refused="other ranks"), 0.0)
    assert received(outcomes) == [("r1", True, "refused")]
    assert not [o for o in outcomes if isinstance(o, BeginPull)]


def test_an_order_without_blocks_is_a_bug_because_its_request_is_not_parked():
    with pytest.raises(AssertionError):
        Pulls(config(), BLOCK_BYTES).order(order(blocks=()), 0.0)


def test_an_aborted_request_that_waits_in_a_queue_is_named_at_once_and_no_thread_takes_it():
    pulls = Pulls(config(), BLOCK_BYTES)
    pulls.order(order(), 0.0)
    assert received(pulls.cancel("r1", 0.1)) == [("r1", True, "cancelled")]
    assert not pulls.begin("r1")
    assert pulls.cancel("r1", 0.2) == []


def test_an_aborted_pull_that_runs_is_named_when_nobody_writes_any_more():
    pulls = Pulls(config(cancel_grace_ms=50), BLOCK_BYTES)
    pulls.order(order(), 0.0)
    pulls.begin("r1")
    pulls.on_link("r1", "the link")
    assert pulls.cancel("r1", 1.0) == []
    assert pulls.on_tick(1.04) == []
    assert pulls.on_tick(1.05) == [BreakLink("the link")]
    assert pulls.on_tick(1.2) == []
    assert pulls.is_cancelled("r1")
    assert received(pulls.on_failed("r1", "transfer_failed", "closed", 1.3)) == [
        ("r1", True, "cancelled")
    ]


def test_what_waits_too_long_in_a_queue_fails():
    pulls = Pulls(config(pull_timeout_ms=2_000), BLOCK_BYTES)
    pulls.order(order(), 0.0)
    assert pulls.on_tick(1.9) == []
    assert received(pulls.on_tick(2.0)) == [("r1", True, "lease_expired")]
    assert not pulls.begin("r1")


def test_more_pulls_than_the_table_holds_fail_at_once():
    pulls = Pulls(config(transfers_max=1), BLOCK_BYTES)
    pulls.order(order("r1"), 0.0)
    assert received(pulls.order(order("r2"), 0.0)) == [("r2", True, "refused")]
    assert len(pulls) == 1


def test_a_pull_that_hangs_past_its_deadline_is_woken():
    pulls = Pulls(config(pull_timeout_ms=2_000, cancel_grace_ms=50), BLOCK_BYTES)
    pulls.order(order(), 0.0)
    pulls.begin("r1")
    pulls.on_link("r1", "the link")
    assert pulls.on_tick(2.04) == []
    assert pulls.on_tick(2.05) == [BreakLink("the link")]
    assert pulls.on_tick(3.0) == [], "once is enough"
