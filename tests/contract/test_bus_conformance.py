"""The promises of ``bus.bus``, asked of both buses: the one in memory and the one on NATS.

On NATS the server is real and the generated permissions are in force, so each test speaks as the
components do: on subjects of the catalogue, in the direction that the catalogue allows.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

import pytest

from bus import subjects
from bus.bus import Answers, Bus, ClientCall, Received
from bus.clients import QUESTION_BYTES_MAX, client_inbox
from bus.endpoint import INBOX, PAYLOAD_BYTES_MAX, Outbox
from bus.errors import AskTimedOut, MessageTooLarge, NoResponders, NotConnected
from bus.memory_bus import MemoryBus, MemoryHub
from bus.nats_bus import NatsBus
from schemas.body import FetchBody, FetchBodyReply
from schemas.client import CancelGeneration
from schemas.engine import ShowStates
from schemas.examples import CARD, example
from schemas.fleet import (
    HeartbeatSent,
    ShowComponent,
    ShowComponentReply,
    ShowFleet,
    ShowFleetReply,
    ShowModel,
)
from schemas.message import Message
from schemas.request import CancelRequest, RequestRefused, ScheduleRequest
from tests.support.nats import KeyRing, NatsInTest, ServerUnderTest, running, until

SCHEDULE = subjects.schedule_request("scheduler-0")
CANCEL = subjects.cancel_request("scheduler-0")
FETCH = subjects.fetch_body("gateway-0")
TIMEOUT_S = 2.0


class World(Protocol):
    """A bus for everyone, and the end of it."""

    async def bus(self, component: str, instance: str, **options: Any) -> Bus: ...
    async def cut(self) -> None: ...
    async def restore(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.buses: list[MemoryBus] = []

    async def bus(self, component: str, instance: str, **options: Any) -> Bus:
        bus = MemoryBus(self.hub, **{"source": instance, "epoch": 1, **options})
        self.buses.append(bus)
        await bus.connect()
        return bus

    async def cut(self) -> None:
        self.hub.stop()

    async def restore(self) -> None:
        self.hub.start()

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()


class NatsWorld:
    def __init__(self, server: NatsInTest) -> None:
        self.server = server
        self.buses: list[NatsBus] = []

    async def bus(self, component: str, instance: str, **options: Any) -> Bus:
        bus = await self.server.bus(component, instance, **options)
        self.buses.append(bus)
        return bus

    async def cut(self) -> None:
        await self.server.kill()
        await until(lambda: not any(b.connected for b in self.buses), "all notice")

    async def restore(self) -> None:
        await self.server.start()
        await until(lambda: all(b.connected for b in self.buses), "all are back")


@pytest.fixture(params=["memory", "nats"])
async def world(
    request: pytest.FixtureRequest, nats_process: ServerUnderTest, nats_keys: KeyRing
) -> AsyncIterator[World]:
    if request.param == "nats":
        async with running(nats_process, nats_keys) as server:
            yield NatsWorld(server)
        return
    memory = MemoryWorld()
    yield memory
    await memory.close()


class Heard(list[Received[Any]]):
    """A handler that keeps what it gets."""

    def __call__(self, received: Received[Any]) -> None:
        self.append(received)

    async def arrive(self, expected: int) -> None:
        await until(lambda: len(self) >= expected, f"{expected} messages")

    @property
    def messages(self) -> list[Message]:
        return [r.message for r in self]


def cancel(number: int) -> CancelRequest:
    return CancelRequest(request_id=f"req-{number}")


# Delivery.


async def test_a_message_arrives_with_its_envelope(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0", epoch=77)
    scheduler = await world.bus("scheduler", "scheduler-0")
    heard = Heard()
    await scheduler.subscribe(SCHEDULE, ScheduleRequest, heard)
    gateway.publish(SCHEDULE, example(ScheduleRequest), trace="00-ab-cd-00")
    await heard.arrive(1)
    assert heard == [
        Received(
            message=example(ScheduleRequest),
            subject=SCHEDULE,
            source="gateway-0",
            epoch=77,
            seq=1,
            traceparent="00-ab-cd-00",
            reply=None,
        )
    ]


async def test_messages_of_one_publisher_keep_their_order_across_subjects(world: World) -> None:
    worker = await world.bus("worker", "decode-0")
    gateway = await world.bus("gateway", "gateway-0")
    order: list[tuple[str, int]] = []
    await gateway.subscribe(
        subjects.request_refused("gateway-0"),
        RequestRefused,
        lambda r: order.append(("refused", r.message.attempt)),
    )
    await gateway.subscribe_frames(
        subjects.frames("gateway-0", subjects.ANY),
        lambda _subject, payload: order.append(("frame", int(payload))),
    )
    await gateway.subscribe(FETCH, FetchBody, lambda r: order.append(("fetch", r.message.attempt)))
    expected = []
    for number in range(300):
        refused = example(RequestRefused, attempt=number)
        worker.publish(subjects.request_refused("gateway-0"), refused)
        worker.publish_frame(subjects.frames("gateway-0", "decode-0"), b"%d" % number)
        worker.publish(FETCH, FetchBody(request_id="r", attempt=number))
        expected += [("refused", number), ("frame", number), ("fetch", number)]
        if number % 50 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(order) == len(expected), "everything arrived")
    assert order == expected


async def test_publishing_returns_before_the_handler_runs(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    heard = Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    gateway.publish(CANCEL, cancel(1))
    assert heard == []
    await heard.arrive(1)


async def test_a_process_hears_itself(world: World) -> None:
    worker = await world.bus("worker", "decode-0")
    heard = Heard()
    await worker.subscribe(
        subjects.heartbeat_sent(subjects.ANY, subjects.ANY), HeartbeatSent, heard
    )
    worker.publish(subjects.heartbeat_sent("worker", "decode-0"), example(HeartbeatSent))
    await heard.arrive(1)


async def test_every_subscription_gets_its_copy(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    first, second = Heard(), Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, first)
    await scheduler.subscribe(CANCEL, CancelRequest, second)
    gateway.publish(CANCEL, cancel(1))
    await first.arrive(1)
    await second.arrive(1)
    assert (len(first), len(second)) == (1, 1)


async def test_one_member_of_a_queue_group_gets_each_message(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    one, two, alone = Heard(), Heard(), Heard()
    pattern = subjects.show_model("m")
    for name, handler, queue in [
        ("decode-0", one, "models"),
        ("decode-1", two, "models"),
        ("prefill-0", alone, None),
    ]:
        worker = await world.bus("worker", name)
        await worker.subscribe(pattern, ShowModel, handler, queue=queue)
    for number in range(100):
        gateway.publish(pattern, ShowModel(model=str(number)))
    await alone.arrive(100)
    await until(lambda: len(one) + len(two) >= 100)
    assert sorted(int(m.model) for m in one.messages + two.messages) == list(range(100))  # type: ignore[attr-defined]
    assert one
    assert two


async def test_a_subscription_can_end(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    ended, still = Heard(), Heard()
    subscription = await scheduler.subscribe(CANCEL, CancelRequest, ended)
    await scheduler.subscribe(CANCEL, CancelRequest, still)
    gateway.publish(CANCEL, cancel(1))
    await still.arrive(1)
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    gateway.publish(CANCEL, cancel(2))
    await still.arrive(2)
    assert len(ended) == 1


async def test_a_subscription_made_after_another_ended_gets_its_own_messages(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    old, new = Heard(), Heard()
    await (await scheduler.subscribe(SCHEDULE, ScheduleRequest, old)).unsubscribe()
    await scheduler.subscribe(CANCEL, CancelRequest, new)
    gateway.publish(SCHEDULE, example(ScheduleRequest))
    gateway.publish(CANCEL, cancel(1))
    await new.arrive(1)
    assert old == []


# What does not belong.


async def test_malformed_and_foreign_messages_are_counted_and_dropped(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    heard = Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    for junk in (b"", b"\xc1", b"{}", b"\x95\x01\x02\x03\x04\x05", b"\x90"):
        gateway.publish_frame(CANCEL, junk)
    gateway.publish(CANCEL, example(ScheduleRequest))  # a message, but not the one for this subject
    gateway.publish(CANCEL, cancel(1))
    await heard.arrive(1)
    assert heard.messages == [cancel(1)]
    assert scheduler.counters["malformed_total"] == 6
    assert scheduler.counters["received_total"] == 1


async def test_a_message_over_the_payload_limit_is_refused_at_once(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    heard = Heard()
    await scheduler.subscribe(SCHEDULE, ScheduleRequest, heard)
    body = bytes(PAYLOAD_BYTES_MAX)
    with pytest.raises(MessageTooLarge):
        gateway.publish(SCHEDULE, ScheduleRequest(card=CARD, body=body))
    with pytest.raises(MessageTooLarge):
        gateway.publish_frame(SCHEDULE, body + b"1")
    gateway.publish(SCHEDULE, ScheduleRequest(card=CARD, body=body[: -16 * 1024]))
    await heard.arrive(1)
    assert heard[0].seq == 1, "what was refused left no gap"
    assert gateway.connected


async def test_an_exception_of_a_handler_is_a_fault_and_stops_nothing(world: World) -> None:
    faults: list[BaseException] = []
    scheduler = await world.bus("scheduler", "scheduler-0", on_fault=faults.append)
    gateway = await world.bus("gateway", "gateway-0")
    seen: list[str] = []

    def handler(received: Received[CancelRequest]) -> None:
        seen.append(received.message.request_id)
        if received.message.request_id == "req-1":
            raise LookupError("a bug")

    await scheduler.subscribe(CANCEL, CancelRequest, handler)
    for number in range(3):
        gateway.publish(CANCEL, cancel(number))
    await until(lambda: len(seen) == 3)
    assert [type(f) for f in faults] == [LookupError]
    assert scheduler.counters["handler_errors_total"] == 1


@pytest.mark.parametrize("caught", [False, True])
async def test_an_answer_over_the_payload_limit_is_no_fault_and_its_asker_waits_in_vain(
    world: World, caught: bool
) -> None:
    """Whoever asks must not be able to end who answers; a handler may give less instead."""
    faults: list[BaseException] = []
    gateway = await world.bus("gateway", "gateway-0", on_fault=faults.append)
    worker = await world.bus("worker", "decode-0")

    def handler(asked: Received[FetchBody]) -> None:
        body = bytes(PAYLOAD_BYTES_MAX if asked.message.request_id == "req-1" else 1)
        reply = FetchBodyReply(request_id=asked.message.request_id, body=body)
        try:
            gateway.respond(asked, reply)
        except MessageTooLarge:
            if not caught:
                raise
            gateway.respond(asked, reply.model_copy(update={"body": None}))

    await gateway.subscribe(FETCH, FetchBody, handler)
    large, small = (FetchBody(request_id=f"req-{n}", attempt=1) for n in (1, 2))
    if caught:
        reply = await worker.ask(FETCH, large, FetchBodyReply, timeout_s=TIMEOUT_S)
        assert reply.body is None
    else:
        with pytest.raises(AskTimedOut):
            await worker.ask(FETCH, large, FetchBodyReply, timeout_s=0.2)
    assert (await worker.ask(FETCH, small, FetchBodyReply, timeout_s=TIMEOUT_S)).body == bytes(1)
    assert gateway.counters["answers_too_large_total"] == 1
    assert (gateway.counters["handler_errors_total"], faults) == (0, [])


async def test_seq_counts_per_schema_id_without_gaps(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    heard = Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    await scheduler.subscribe(SCHEDULE, ScheduleRequest, heard)
    for message, subject in [(cancel(1), CANCEL), (example(ScheduleRequest), SCHEDULE)] * 3:
        gateway.publish(subject, message)
    await heard.arrive(6)
    assert [(type(r.message), r.seq) for r in heard] == [
        (kind, seq) for seq in (1, 2, 3) for kind in (CancelRequest, ScheduleRequest)
    ]


# Questions.


async def answer_fetches(gateway: Bus) -> None:
    def answer(question: Received[FetchBody]) -> None:
        gateway.respond(question, FetchBodyReply(request_id=question.message.request_id, body=b"x"))

    await gateway.subscribe(FETCH, FetchBody, answer)


async def test_a_question_gets_its_answer(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    worker = await world.bus("worker", "decode-0")
    await answer_fetches(gateway)
    answers = await asyncio.gather(
        *(
            worker.ask(
                FETCH,
                FetchBody(request_id=f"req-{number}", attempt=1),
                FetchBodyReply,
                timeout_s=TIMEOUT_S,
            )
            for number in range(50)
        )
    )
    assert [a.request_id for a in answers] == [f"req-{n}" for n in range(50)]


async def test_a_question_that_nobody_listens_to_fails_at_once(world: World) -> None:
    worker = await world.bus("worker", "decode-0")
    started_s = time.monotonic()
    with pytest.raises(NoResponders):
        await worker.ask(FETCH, example(FetchBody), FetchBodyReply, timeout_s=TIMEOUT_S)
    assert time.monotonic() - started_s < TIMEOUT_S / 2
    assert worker.counters["no_responders_total"] == 1


async def test_a_question_without_an_answer_times_out_and_a_late_answer_is_counted(
    world: World,
) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    worker = await world.bus("worker", "decode-0")
    questions = Heard()
    await gateway.subscribe(FETCH, FetchBody, questions)
    with pytest.raises(AskTimedOut):
        await worker.ask(FETCH, example(FetchBody), FetchBodyReply, timeout_s=0.05)
    assert worker.counters["asks_timed_out_total"] == 1
    gateway.respond(questions[0], example(FetchBodyReply))
    await until(lambda: worker.counters["late_replies_total"] == 1)


async def test_an_answer_of_another_class_is_no_answer(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    worker = await world.bus("worker", "decode-0")
    await gateway.subscribe(FETCH, FetchBody, lambda q: gateway.respond(q, cancel(1)))
    with pytest.raises(AskTimedOut):
        await worker.ask(FETCH, example(FetchBody), FetchBodyReply, timeout_s=0.1)
    assert worker.counters["malformed_total"] == 1


async def test_all_who_answer_in_time_are_heard(world: World) -> None:
    operator = await world.bus("operator", "operator")
    everyone = subjects.show_component(subjects.EVERYONE)
    for component, name in [
        ("gateway", "gateway-0"),
        ("worker", "decode-0"),
        ("bridge", "bridge-0"),
    ]:
        bus = await world.bus(component, name)

        def answer(question: Received[ShowComponent], bus: Bus = bus) -> None:
            bus.respond(question, example(ShowComponentReply))

        await bus.subscribe(everyone, ShowComponent, answer)
    answers = await operator.ask_all(everyone, ShowComponent(), ShowComponentReply, wait_s=0.2)
    assert sorted(a.source for a in answers) == ["bridge-0", "decode-0", "gateway-0"]


async def test_asking_all_where_nobody_listens_returns_at_once(world: World) -> None:
    operator = await world.bus("operator", "operator")
    started_s = time.monotonic()
    everyone = subjects.show_component(subjects.EVERYONE)
    answers = await operator.ask_all(
        everyone, ShowComponent(), ShowComponentReply, wait_s=TIMEOUT_S
    )
    assert answers == []
    assert time.monotonic() - started_s < TIMEOUT_S / 2


@pytest.mark.parametrize(
    "address", ["yard.sig.heartbeat.sent.worker.decode-0", "_INBOX.x", "", None]
)
async def test_an_answer_goes_to_an_inbox_or_nowhere(world: World, address: str | None) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    worker = await world.bus("worker", "decode-0")
    questions = Heard()
    await gateway.subscribe(FETCH, FetchBody, questions)
    worker.publish(FETCH, example(FetchBody))
    await questions.arrive(1)
    forged = replace(questions[0], reply=address)
    gateway.respond(forged, example(FetchBodyReply))
    assert gateway.counters["refused_replies_total"] == 1
    assert gateway.counters["published_total"] == 0


async def test_a_question_carries_a_reply_address_and_a_message_does_not(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    worker = await world.bus("worker", "decode-0")
    questions = Heard()
    await gateway.subscribe(FETCH, FetchBody, questions)
    worker.publish(FETCH, example(FetchBody))
    with pytest.raises(AskTimedOut):
        await worker.ask(FETCH, example(FetchBody), FetchBodyReply, timeout_s=0.02)
    await questions.arrive(2)
    assert questions[0].reply is None
    assert (questions[1].reply or "").startswith(INBOX)


# Being away.


async def test_subscriptions_survive_and_the_owner_is_told(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    scheduler = await world.bus("scheduler", "scheduler-0")
    heard = Heard()
    returns: list[str] = []
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    await answer_fetches(gateway)
    gateway.on_reconnect(lambda: returns.append("gateway"))
    scheduler.on_reconnect(lambda: returns.append("scheduler"))
    assert gateway.connected
    await world.cut()
    assert not gateway.connected
    await world.restore()
    await until(lambda: sorted(returns) == ["gateway", "scheduler"], "both are told once")
    gateway.publish(CANCEL, cancel(1))
    await heard.arrive(1)
    assert gateway.counters["reconnects_total"] == 1
    worker = await world.bus("worker", "decode-0")
    await worker.ask(FETCH, example(FetchBody), FetchBodyReply, timeout_s=TIMEOUT_S)


async def test_one_who_fails_to_take_the_news_does_not_keep_it_from_others(world: World) -> None:
    faults: list[BaseException] = []
    gateway = await world.bus("gateway", "gateway-0", on_fault=faults.append)
    told: list[str] = []

    def fail() -> None:
        raise LookupError("a bug")

    gateway.on_reconnect(fail)
    gateway.on_reconnect(lambda: told.append("second"))
    await world.cut()
    await world.restore()
    await until(lambda: told == ["second"])
    assert [type(f) for f in faults] == [LookupError]


async def test_what_is_published_while_away_leaves_later_in_order(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    scheduler = await world.bus("scheduler", "scheduler-0")
    heard = Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    scheduler_is_back = asyncio.Event()
    scheduler.on_reconnect(scheduler_is_back.set)
    await world.cut()
    for number in range(20):
        gateway.publish(CANCEL, cancel(number))
    with pytest.raises(NotConnected):
        await gateway.flush(0.05)
    await world.restore()
    gateway.publish(CANCEL, cancel(20))
    await until(lambda: cancel(20) in heard.messages)
    numbers = [int(m.request_id[4:]) for m in heard.messages]  # type: ignore[attr-defined]
    # Whoever was away longer than the sender misses the beginning, never something in between.
    assert numbers == list(range(numbers[0], 21))


async def test_the_outgoing_buffer_is_bounded_and_drops_the_newest(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0", outbox=Outbox(messages_max=10))
    await world.cut()
    for number in range(25):
        gateway.publish(CANCEL, cancel(number))
    assert gateway.counters["dropped_total"] == 15
    await world.restore()
    await gateway.flush()
    assert gateway.counters["dropped_total"] == 15


async def test_the_outgoing_buffer_is_bounded_in_bytes(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0", outbox=Outbox(bytes_max=100_000))
    await world.cut()
    for _ in range(5):
        gateway.publish_frame(CANCEL, bytes(30_000))
    assert gateway.counters["dropped_total"] == 2


# The end.


async def test_closing_delivers_what_was_published(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    heard = Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    for number in range(200):
        gateway.publish(CANCEL, cancel(number))
    await gateway.close()
    await gateway.close()
    await heard.arrive(200)


async def test_a_closed_bus_takes_nothing(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    scheduler = await world.bus("scheduler", "scheduler-0")
    heard = Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    await scheduler.close()
    assert not scheduler.connected
    gateway.publish(CANCEL, cancel(1))
    await gateway.flush()
    assert heard == []
    before = scheduler.counters["dropped_total"]
    scheduler.publish(subjects.request_queued("gateway-0"), example(RequestRefused))
    assert scheduler.counters["dropped_total"] == before + 1
    with pytest.raises(NotConnected):
        await scheduler.ask(FETCH, example(FetchBody), FetchBodyReply, timeout_s=TIMEOUT_S)
    with pytest.raises(NotConnected):
        await scheduler.subscribe(CANCEL, CancelRequest, heard)


# Clients.

CHAT = subjects.complete_chat("acme")


async def client_of(world: World, tenant: str) -> Bus:
    return await world.bus("client", tenant, inbox_prefix=client_inbox(tenant))


class Replies(list[Any]):
    """What comes back to a client: JSON, or None for "nobody"."""

    def __call__(self, data: bytes | None) -> None:
        self.append(None if data is None else json.loads(data))

    async def arrive(self, expected: int) -> None:
        await until(lambda: len(self) >= expected, f"{expected} answers")


async def test_a_question_in_json_is_answered_in_json(world: World) -> None:
    registry = await world.bus("registry", "registry-0")
    client = await client_of(world, "acme")
    reply = example(ShowFleetReply)
    await registry.subscribe(
        subjects.show_fleet(), ShowFleet, lambda asked: registry.respond(asked, reply)
    )
    replies = Replies()
    for question in (b"{}", b"", b" {}"):
        client.call(subjects.show_fleet(), question, replies)
    await replies.arrive(3)
    assert [ShowFleetReply.model_validate(r) for r in replies] == [reply] * 3
    # Our own form is spoken on the same subject.
    own = await client.ask(subjects.show_fleet(), ShowFleet(), ShowFleetReply, timeout_s=5)
    assert own == reply


@pytest.mark.parametrize(
    ("question", "code", "says"),
    [
        (b"{", "invalid_question", "the question"),
        (b'{"model": 3}', "invalid_question", "model"),
        (b'{"model": "m", "more": 1}', "invalid_question", "more"),
        (b'{"model": ' + b"[" * 5000, "invalid_question", "the question"),
        (b"{" + b" " * QUESTION_BYTES_MAX, "too_large", str(QUESTION_BYTES_MAX)),
    ],
)
async def test_a_question_in_bad_json_is_refused_by_a_code_and_never_handled(
    world: World, question: bytes, code: str, says: str
) -> None:
    worker = await world.bus("worker", "decode-0")
    client = await client_of(world, "acme")
    heard = Heard()
    await worker.subscribe(subjects.show_model("m"), ShowModel, heard)
    replies = Replies()
    client.call(subjects.show_model("m"), question, replies)
    await replies.arrive(1)
    assert replies[0]["error"]["code"] == code
    assert says in replies[0]["error"]["message"]
    assert heard == []
    assert worker.counters["malformed_total"] == 1


async def test_our_own_form_gives_a_client_no_way_around_limits(world: World) -> None:
    bridge = await world.bus("bridge", "bridge-0")
    client = await client_of(world, "acme")
    heard = Heard()
    await bridge.subscribe(subjects.show_states("bridge-0"), ShowStates, heard)
    for question in (
        ShowStates.model_construct(history=10**9, limit=500),
        ShowStates.model_construct(history=0, limit=-1),
    ):
        client.publish(subjects.show_states("bridge-0"), question)
    client.publish(subjects.show_states("bridge-0"), ShowStates(limit=1))
    await heard.arrive(1)
    assert (heard.messages, bridge.counters["malformed_total"]) == ([ShowStates(limit=1)], 2)


async def test_json_is_no_language_between_processes(world: World) -> None:
    scheduler = await world.bus("scheduler", "scheduler-0")
    gateway = await world.bus("gateway", "gateway-0")
    heard = Heard()
    await scheduler.subscribe(CANCEL, CancelRequest, heard)
    gateway.publish_frame(CANCEL, b'{"request_id": "r-1"}')
    gateway.publish(CANCEL, cancel(1))
    await heard.arrive(1)
    assert scheduler.counters["malformed_total"] == 1


async def test_a_call_is_answered_by_many_messages_in_order(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    client = await client_of(world, "acme")
    calls: list[ClientCall] = []

    def answer(call: ClientCall) -> None:
        calls.append(call)
        answers = gateway.answer(call, lambda: pytest.fail("the client is there"))
        for n in range(3):
            answers.send(b'{"n": %d}' % n)
        answers.close()

    await gateway.subscribe_calls(subjects.complete_chat(subjects.ANY), answer, queue="gateway")
    replies = Replies()
    asked = client.call(CHAT, b'{"model": "m"}', replies)
    await replies.arrive(3)
    assert replies == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert calls == [ClientCall("acme", asked.address, b'{"model": "m"}')]


async def test_who_answers_a_client_is_told_when_it_has_left(world: World) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    client = await client_of(world, "acme")
    opened: list[Answers] = []
    gone: list[bool] = []
    await gateway.subscribe_calls(
        CHAT,
        lambda call: opened.append(gateway.answer(call, lambda: gone.append(True))),
        queue="gateway",
    )
    replies = Replies()
    client.call(CHAT, b"{}", replies)
    await until(lambda: bool(opened), "the call")
    opened[0].send(b"{}")
    await replies.arrive(1)
    assert gone == []
    await client.close()
    async with asyncio.timeout(5):
        while not gone:  # the server may learn of the end after the next message
            opened[0].send(b"{}")
            await gateway.flush()
    opened[0].close()
    told = len(gone)
    opened[0].send(b"{}")
    await gateway.flush()
    assert len(gone) == told, "after close nobody is told"


async def test_a_call_that_nobody_serves_is_told_at_once(world: World) -> None:
    client = await client_of(world, "acme")
    replies = Replies()
    client.call(CHAT, b"{}", replies)
    await replies.arrive(1)
    assert replies == [None]


@pytest.mark.parametrize("subject", [CHAT, subjects.cancel_generation("acme")])
async def test_no_tenant_is_answered_in_the_inbox_of_another(world: World, subject: str) -> None:
    gateway = await world.bus("gateway", "gateway-0")
    client = await client_of(world, "acme")
    calls: list[ClientCall] = []
    cancels = Heard()
    await gateway.subscribe_calls(CHAT, calls.append, queue="gateway")
    await gateway.subscribe(subjects.cancel_generation("acme"), CancelGeneration, cancels)
    for foreign in ("_INBOX_client.globex.1", "_INBOX_client.acme2.1", "_INBOX_router-0.1", "x"):
        client._post(subject, b'{"reply": "x"}', foreign)  # type: ignore[attr-defined]
    await client.flush()
    await until(lambda: gateway.counters["refused_replies_total"] == 4, "four refusals")
    assert (calls, cancels) == ([], [])
