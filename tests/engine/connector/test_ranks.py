"""Ranks hand blocks over through links that break, peers that vanish and leases that end."""

import asyncio

import pytest

pytest.importorskip("torch")

import torch  # type: ignore[import-not-found]

from bus.subjects import kv_moved
from schemas.links import KvMoved
from tests.engine.connector.ranks import RankInTest, until

NAMES = ("prefill-0", "decode-0")
SETTINGS = {"pull_timeout_ms": 3_000, "open_timeout_ms": 1_500, "staging_bytes": 1_500}


@pytest.fixture
async def ranks(nats_server):
    """Makes connected ranks; stops them at the end."""
    made: list[RankInTest] = []

    def make(worker, epoch=1, **settings):
        rank = RankInTest(worker, epoch, nats_server, seed=len(made), **{**SETTINGS, **settings})
        made.append(rank)
        return rank

    yield make
    for rank in made:
        rank.disturbance.go_on.set()
        await asyncio.to_thread(rank.mover.stop)


@pytest.fixture
async def pair(ranks):
    return await started(ranks("prefill-0"), ranks("decode-0"))


async def started(*ranks):
    for rank in ranks:
        await asyncio.to_thread(rank.start)
    return ranks


async def wait(condition, *ranks):
    return await asyncio.to_thread(until, condition, *ranks)


async def test_blocks_arrive_as_they_were_in_chunks_and_from_the_middle(pair, nats_bus):
    p, d = pair
    told = []
    for worker in ("prefill-0", "decode-0"):
        bus = await nats_bus("worker", worker)
        await bus.subscribe(kv_moved(worker), KvMoved, lambda r: told.append(r.message))
    held = [9, 3, 40, 41, 7, 8, 63, 0]
    p.pin("t1", held)
    d.pull("t1", p, [5, 50, 6, 1, 2, 60], first=2)
    await wait(lambda: d.named.received and p.named.sent, p, d)
    assert d.named.failed == set()
    assert d.holds([5, 50, 6, 1, 2, 60], p, held[2:])
    assert p.disturbance.sent == 3, "three chunks, the first with the head"
    assert p.mover.pinned_blocks == 0
    await wait(lambda: len(told) == 2, p, d)
    size = 6 * p.mover.kv.block_bytes
    assert {(m.side, m.reason, m.bytes_moved) for m in told} == {
        ("sent", "consumed", size),
        ("received", "consumed", size),
    }


async def test_many_transfers_share_one_link_and_two_pullers_do_not_meet(ranks):
    p, d, other = await started(ranks("prefill-0"), ranks("decode-0"), ranks("decode-1"))
    for n in range(20):
        p.pin(f"t{n}", [n, n + 20])
        puller = d if n % 2 else other
        puller.pull(f"t{n}", p, [n, n + 30])
    everyone = (p, d, other)
    await wait(lambda: len(d.named.received | other.named.received) == 20, *everyone)
    assert not d.named.failed | other.named.failed
    assert all((d if n % 2 else other).holds([n, n + 30], p, [n, n + 20]) for n in range(20))
    assert (d.disturbance.opened, other.disturbance.opened) == (1, 1)
    await wait(lambda: len(p.named.sent) == 20, p)


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_link_that_breaks_is_made_anew_and_the_blocks_still_arrive(pair, at):
    p, d = pair
    p.disturbance.at = at
    p.pin("t1", [1, 2, 3, 4, 5])
    d.pull("t1", p, [11, 12, 13, 14, 15])
    await wait(lambda: d.named.received and p.named.sent, p, d)
    assert d.named.failed == set()
    assert d.holds([11, 12, 13, 14, 15], p, [1, 2, 3, 4, 5])
    assert p.disturbance.opened == 2


async def test_a_receipt_that_is_lost_is_made_up_for_by_a_release(pair):
    p, d = pair
    d.disturbance.at = 1  # the only thing that D sends
    p.pin("t1", [1, 2])
    d.pull("t1", p, [11, 12])
    await wait(lambda: d.named.received and p.named.sent, p, d)
    assert d.named.failed == set()
    assert d.holds([11, 12], p, [1, 2])
    assert p.disturbance.opened == 1, "nothing was moved twice"


async def test_a_link_that_always_breaks_fails_the_pull_and_frees_the_blocks(pair):
    p, d = pair
    p.disturbance.at, p.disturbance.always = 1, True
    p.pin("t1", [1, 2])
    d.pull("t1", p, [11, 12])
    await wait(lambda: d.named.failed and p.named.sent, p, d)
    assert p.mover.pinned_blocks == 0
    p.disturbance.at = 0
    p.pin("t2", [3])
    d.pull("t2", p, [13])
    await wait(lambda: "d-t2" in d.named.received, p, d)
    assert d.holds([13], p, [3]), "the pair is as good as new"
    assert "d-t2" not in d.named.failed


async def test_a_holder_that_falls_silent_costs_no_more_than_the_deadline(ranks):
    p, d = await started(ranks("prefill-0"), ranks("decode-0", pull_timeout_ms=600))
    p.disturbance.at, p.disturbance.hold = 1, True
    p.pin("t1", [1, 2], lease_ms=1_000)
    d.pull("t1", p, [11, 12])
    took_s = await wait(lambda: d.named.failed, p, d)
    assert 0.5 < took_s < 2
    p.disturbance.go_on.set()
    await wait(lambda: p.named.sent, p)


async def test_a_lease_that_ends_in_mid_transfer_ends_the_pin(ranks):
    p, d = await started(ranks("prefill-0"), ranks("decode-0"))
    d.disturbance.at, d.disturbance.hold = 1, True  # all is there, but D does not say so
    p.pin("t1", [1, 2], lease_ms=400)
    d.pull("t1", p, [11, 12])
    took_s = await wait(lambda: p.named.sent, p, d)
    assert 0.3 < took_s < 1.0
    assert p.mover.pinned_blocks == 0


async def test_a_lease_that_nobody_uses_ends_by_itself(pair):
    p, _ = pair
    p.pin("t1", [1, 2], lease_ms=200)
    assert await wait(lambda: p.named.sent, p) < 1.0


async def test_a_transfer_that_nobody_holds_is_refused(pair):
    p, d = pair
    d.pull("t1", p, [11])
    took_s = await wait(lambda: d.named.failed, p, d)
    assert took_s < 2.5


async def test_a_holder_that_is_not_there_fails_at_once(ranks):
    (d,) = await started(ranks("decode-0"))
    d.pull("t1", ranks("prefill-0"), [11])
    assert await wait(lambda: d.named.failed, d) < 1.0


async def test_a_holder_of_another_life_refuses(ranks):
    p, d = await started(ranks("prefill-0", epoch=5), ranks("decode-0"))
    p.pin("t1", [1])
    p.epoch = 4
    d.pull("t1", p, [11])
    assert await wait(lambda: d.named.failed, p, d) < 1.0
    assert p.mover.pinned_blocks == 1


async def test_an_aborted_pull_is_named_soon_and_the_holder_is_released(pair):
    p, d = pair
    p.disturbance.at, p.disturbance.hold = 1, True
    p.pin("t1", [1, 2])
    d.pull("t1", p, [11, 12])
    assert await asyncio.to_thread(p.disturbance.reached.wait, 5)
    d.cancel("t1")
    assert await wait(lambda: d.named.received, p, d) < 1.0
    p.disturbance.go_on.set()
    assert await wait(lambda: p.named.sent, p) < 1.0


async def test_ranks_pull_from_their_equals(ranks):
    equals = {}
    for rank in range(2):
        equals[rank] = await started(
            ranks("prefill-0", rank=rank, ranks=2), ranks("decode-0", rank=rank, ranks=2)
        )
    for p, d in equals.values():
        p.pin("t1", [1, 2])
        d.pull("t1", p, [11, 12])
    for p, d in equals.values():
        await wait(lambda d=d, p=p: d.named.received and p.named.sent, p, d)
        assert d.holds([11, 12], p, [1, 2])


async def test_a_rendezvous_survives_a_restart_of_nats(pair, nats_server):
    p, d = pair
    await nats_server.kill()
    await nats_server.start()
    for n in range(3):  # a bus that does not know yet that it was away lets its first question fail
        p.pin(f"t{n}", [1, 2], lease_ms=3_000)
        d.pull(f"t{n}", p, [11, 12])
        await wait(lambda n=n: f"d-t{n}" in d.named.received, p, d)
        if f"d-t{n}" not in d.named.failed:
            break
    assert d.holds([11, 12], p, [1, 2])


@pytest.mark.parametrize("who_tires", ["prefill-0", "decode-0", "both"])
async def test_an_idle_link_is_closed_by_either_end_and_the_next_pull_makes_another(
    ranks, who_tires
):
    idle = [{"link_idle_ms": 80} if who_tires in {who, "both"} else {} for who in NAMES]
    p, d = await started(ranks(NAMES[0], **idle[0]), ranks(NAMES[1], **idle[1]))
    for n in range(3):
        p.pin(f"t{n}", [n, 9])
        d.pull(f"t{n}", p, [n + 10, 19])
        await wait(lambda n=n: f"d-t{n}" in d.named.received and f"p-t{n}" in p.named.sent, p, d)
        assert d.holds([n + 10, 19], p, [n, 9])
        tired = [r for r, say in zip((p, d), idle, strict=True) if say]
        await wait(lambda tired=tired: not any(r.mover._links for r in tired), p, d)
    assert d.named.failed == set()
    assert d.disturbance.opened == 3
    await wait(lambda: all(not (r.mover._servers or r.mover._pullers) for r in tired), p, d)


async def test_stopping_in_mid_transfer_ends_all_threads(ranks):
    p, d = await started(ranks("prefill-0"), ranks("decode-0"))
    d.disturbance.at, d.disturbance.hold = 1, True
    p.pin("t1", [1, 2])
    d.pull("t1", p, [11, 12])
    assert await asyncio.to_thread(d.disturbance.reached.wait, 5)
    d.disturbance.go_on.set()
    await asyncio.gather(asyncio.to_thread(p.mover.stop), asyncio.to_thread(d.mover.stop))
    assert not [t for t in (*p.mover._servers.values(), *d.mover._pullers.values()) if t.is_alive]


async def staged(p, d, transfer="t1", blocks=(9, 3, 40, 41, 7)):
    """P holds these blocks, and D, which has none free, has them in host memory."""
    p.pin(transfer, blocks)
    d.stage(transfer, p, len(blocks))
    await wait(lambda: f"p-{transfer}" in p.named.sent and d.mover.staged_bytes, p, d)


async def test_what_d_has_no_blocks_for_waits_in_its_memory_and_p_is_free(pair):
    p, d = pair
    await staged(p, d)
    assert p.mover.pinned_blocks == 0
    assert d.named.received == set(), "vLLM has not parked it"
    assert d.mover.staged_bytes == 5 * d.mover.kv.block_bytes
    before = [layer.clone() for layer in p.layers]
    p.layers[0].zero_()  # what P does with its blocks now is its own affair
    d.pull("t1", p, [1, 2, 3, 4, 5])
    await wait(lambda: d.named.received, d)
    assert d.named.failed == set()
    for mine, theirs in zip(d.layers, before, strict=True):
        assert torch.equal(mine[[1, 2, 3, 4, 5]], theirs[[9, 3, 40, 41, 7]])
    assert d.mover.staged_bytes == 0


@pytest.mark.parametrize("first", [1, 2, 3, 4])
async def test_a_prefix_that_is_found_later_needs_only_the_tail_of_what_was_staged(pair, first):
    p, d = pair
    held = [9, 3, 40, 41, 7]
    await staged(p, d, blocks=held)
    mine = [11, 12, 13, 14, 15][first:]
    untouched = d.layers[0][11].clone()
    d.pull("t1", p, mine, first=first)
    await wait(lambda: d.named.received, d)
    assert d.holds(mine, p, held[first:])
    assert torch.equal(d.layers[0][11], untouched)


async def test_a_request_that_is_aborted_while_it_is_staged_gives_the_memory_back(pair):
    p, d = pair
    await staged(p, d)
    d.cancel("t1")
    assert d.mover.staged_bytes == 0
    assert d.mover._copies == {}
    await staged(p, d, "t2")
    d.pull("t2", p, [1, 2, 3, 4, 5])
    await wait(lambda: d.named.received, d)
    assert d.named.received == {"d-t2"}


async def test_a_pull_waits_for_the_stage_of_its_transfer_that_is_on_its_way(pair):
    p, d = pair
    p.disturbance.at, p.disturbance.hold = 2, True
    p.pin("t1", [1, 2, 3, 4, 5])
    d.stage("t1", p, 5)
    assert await asyncio.to_thread(p.disturbance.reached.wait, 5)
    d.pull("t1", p, [11, 12, 13, 14, 15])
    p.disturbance.go_on.set()
    await wait(lambda: d.named.received and p.named.sent, p, d)
    assert d.named.failed == set()
    assert d.holds([11, 12, 13, 14, 15], p, [1, 2, 3, 4, 5])
    assert p.disturbance.sent == 3, "moved once"


async def test_a_stage_that_fails_leaves_the_pull_as_it_was(ranks):
    p, d = await started(ranks("prefill-0"), ranks("decode-0", link_tries_max=1))
    p.disturbance.at = 1
    p.pin("t1", [1, 2])
    d.stage("t1", p, 2)
    assert await asyncio.to_thread(p.disturbance.reached.wait, 5)
    await wait(lambda: d.mover.staged_bytes == 0, p, d)
    d.pull("t1", p, [11, 12])
    await wait(lambda: d.named.received and p.named.sent, p, d)
    assert d.named.failed == set()
    assert d.holds([11, 12], p, [1, 2])


async def test_without_room_in_host_memory_a_transfer_stays_where_it_is(ranks):
    p, d = await started(ranks("prefill-0"), ranks("decode-0", host_staging_bytes=100))
    p.pin("t1", [1, 2])
    d.stage("t1", p, 2)
    await asyncio.sleep(0.1)
    assert p.mover.pinned_blocks == 2
    d.pull("t1", p, [11, 12])
    await wait(lambda: d.named.received and p.named.sent, p, d)
    assert d.holds([11, 12], p, [1, 2])
