"""What the bus in memory has beyond the promise: faults for tests, and determinism."""

from typing import Any

import pytest

from bus import subjects
from bus.bus import Received
from bus.errors import AskTimedOut, NotConnected
from bus.memory_bus import MemoryBus, MemoryHub
from schemas.body import FetchBody, FetchBodyReply
from schemas.examples import example
from schemas.fleet import ShowModel
from schemas.request import CancelRequest
from tests.support.nats import until

CANCEL = subjects.cancel_request("scheduler-0")


async def member(hub: MemoryHub, name: str, epoch: int = 1, **options: Any) -> MemoryBus:
    bus = MemoryBus(hub, source=name, epoch=epoch, **options)
    await bus.connect()
    return bus


async def test_one_member_can_be_cut_off_and_healed() -> None:
    hub = MemoryHub()
    gateway, scheduler = await member(hub, "gateway-0"), await member(hub, "scheduler-0")
    got: list[str] = []
    returns: list[str] = []
    await scheduler.subscribe(CANCEL, CancelRequest, lambda r: got.append(r.message.request_id))
    scheduler.on_reconnect(lambda: returns.append("scheduler"))
    hub.partition("scheduler-0")
    assert (gateway.connected, scheduler.connected) == (True, False)
    gateway.publish(CANCEL, CancelRequest(request_id="lost"))
    await gateway.flush()
    hub.heal("scheduler-0")
    gateway.publish(CANCEL, CancelRequest(request_id="heard"))
    await until(lambda: got == ["heard"])
    assert returns == ["scheduler"]


async def test_what_a_member_sends_while_cut_off_waits() -> None:
    hub = MemoryHub()
    gateway, scheduler = await member(hub, "gateway-0"), await member(hub, "scheduler-0")
    got: list[str] = []
    await scheduler.subscribe(CANCEL, CancelRequest, lambda r: got.append(r.message.request_id))
    hub.partition("gateway-0")
    gateway.publish(CANCEL, CancelRequest(request_id="1"))
    gateway.publish(CANCEL, CancelRequest(request_id="2"))
    await scheduler.flush()
    assert got == []
    hub.heal("gateway-0")
    await until(lambda: got == ["1", "2"])


async def test_a_question_to_a_member_that_is_cut_off_times_out() -> None:
    """Not "no responders": a server keeps the interest of a dead link until it notices."""
    hub = MemoryHub()
    gateway, worker = await member(hub, "gateway-0"), await member(hub, "decode-0")
    fetch = subjects.fetch_body("gateway-0")
    await gateway.subscribe(fetch, FetchBody, lambda q: gateway.respond(q, example(FetchBodyReply)))
    hub.partition("gateway-0")
    with pytest.raises(AskTimedOut):
        await worker.ask(fetch, example(FetchBody), FetchBodyReply, timeout_s=0.01)


async def test_two_lives_of_one_name_do_not_hear_each_others_answers() -> None:
    hub = MemoryHub()
    gateway = await member(hub, "gateway-0")
    old, new = await member(hub, "decode-0", 1), await member(hub, "decode-0", 2)
    fetch = subjects.fetch_body("gateway-0")
    await gateway.subscribe(fetch, FetchBody, lambda q: gateway.respond(q, example(FetchBodyReply)))
    await new.ask(fetch, example(FetchBody), FetchBodyReply, timeout_s=1)
    assert old.counters["late_replies_total"] == 0


async def test_a_queue_group_takes_turns_so_that_runs_repeat() -> None:
    hub = MemoryHub()
    gateway = await member(hub, "gateway-0")
    took: list[str] = []
    pattern = subjects.show_model("m")
    for name in ("decode-0", "decode-1"):
        bus = await member(hub, name)

        def take(_received: Received[ShowModel], name: str = name) -> None:
            took.append(name)

        await bus.subscribe(pattern, ShowModel, take, queue="models")
    for _ in range(4):
        gateway.publish(pattern, ShowModel(model="m"))
    await until(lambda: len(took) == 4)
    assert took in (["decode-0", "decode-1"] * 2, ["decode-1", "decode-0"] * 2)


async def test_a_handler_that_always_publishes_again_does_not_stop_the_loop() -> None:
    hub = MemoryHub()
    scheduler = await member(hub, "scheduler-0")
    rounds = [0]

    def again(_received: Received[CancelRequest]) -> None:
        rounds[0] += 1
        assert rounds[0] < 100_000, "nobody else gets a turn"
        scheduler.publish(CANCEL, CancelRequest(request_id="again"))

    await scheduler.subscribe(CANCEL, CancelRequest, again)
    scheduler.publish(CANCEL, CancelRequest(request_id="first"))
    await until(lambda: rounds[0] > 100)
    assert scheduler.counters["handler_errors_total"] == 0
    await scheduler.close()


async def test_a_prefix_of_ones_own_is_seen_on_the_wire_only() -> None:
    hub = MemoryHub()
    gateway = await member(hub, "gateway-0", prefix="depot.two")
    scheduler = await member(hub, "scheduler-0", prefix="depot.two")
    stranger = await member(hub, "stranger")
    got: list[str] = []
    await scheduler.subscribe(CANCEL, CancelRequest, lambda r: got.append(r.subject))
    await stranger.subscribe(CANCEL, CancelRequest, lambda r: got.append("stranger"))
    gateway.publish(CANCEL, example(CancelRequest))
    await until(lambda: got == [CANCEL])
    assert scheduler.interests[0].pattern == "depot.two.cmd.request.cancel.scheduler-0"


async def test_nobody_connects_to_a_hub_that_is_down() -> None:
    hub = MemoryHub()
    hub.stop()
    with pytest.raises(NotConnected):
        await member(hub, "gateway-0")
