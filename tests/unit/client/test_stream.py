"""A streamed answer is whole, or an error says why it is not; the other side is scripted."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus import subjects
from bus.bus import Answers, ClientCall
from bus.clients import client_inbox
from bus.memory_bus import MemoryBus, MemoryHub
from components.client import (
    AnswerLost,
    ClientError,
    GatewayLost,
    NobodyAnswers,
    ReaderTooSlow,
    Refused,
    Stream,
)
from components.client.stream import WAITING_MAX
from schemas.client import CancelGeneration

CHAT = subjects.complete_chat("acme")


def chunk(text: str, choice: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": choice, "delta": {"content": text}, "finish_reason": None}]}


class Gateway:
    """Says what a test tells it to, and hears who cancels."""

    def __init__(self, hub: MemoryHub) -> None:
        self.bus = MemoryBus(hub, source="gateway-0", epoch=1)
        self.answers: list[Answers] = []
        self.cancelled: list[str] = []
        self.script: list[Any] = []

    async def start(self) -> None:
        await self.bus.connect()
        await self.bus.subscribe_calls(CHAT, self._on_call, queue="gateway")
        await self.bus.subscribe(
            subjects.cancel_generation("acme"),
            CancelGeneration,
            lambda received: self.cancelled.append(received.message.reply),
        )

    def _on_call(self, call: ClientCall) -> None:
        self.answers.append(self.bus.answer(call, lambda: None))
        for message in self.script:
            self.say(message)

    def say(self, message: Any) -> None:
        self.answers[0].send(
            message if isinstance(message, bytes) else json.dumps(message).encode()
        )


class Yard:
    def __init__(self, gateway: Gateway, bus: MemoryBus) -> None:
        self.gateway = gateway
        self.bus = bus

    def stream(self, *script: Any, silence_s: float = 2.0) -> Stream:
        self.gateway.script = list(script)
        return Stream(self.bus, "acme", CHAT, b"{}", silence_s)

    async def cancelled(self) -> int:
        await self.bus.flush()
        return len(self.gateway.cancelled)


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    hub = MemoryHub()
    gateway = Gateway(hub)
    await gateway.start()
    bus = MemoryBus(hub, source="client-acme", epoch=1, inbox_prefix=client_inbox("acme"))
    await bus.connect()
    yield Yard(gateway, bus)
    await bus.close()
    await gateway.bus.close()


async def test_what_comes_in_order_is_read_to_its_end_and_not_cancelled(yard: Yard) -> None:
    stream = yard.stream(
        {"n": 0, "requests": ["req-1"]},
        {"n": 1, "chunks": [chunk("a"), chunk("x", choice=1)]},
        {"n": 2, "chunks": []},
        {"n": 3, "chunks": [chunk("b")], "done": True, "usage": {"completion_tokens": 3}},
    )
    assert await stream.text() == "ab"
    assert (stream.requests, stream.usage) == (("req-1",), {"completion_tokens": 3})
    stream.close()
    assert await yard.cancelled() == 0


@pytest.mark.parametrize(
    ("script", "expected", "code"),
    [
        ([{"n": 1, "chunks": []}], AnswerLost, "messages_lost"),
        ([{"n": 0}, {"n": 2, "chunks": []}], AnswerLost, "messages_lost"),
        ([{"n": 0}, {"n": 0}], AnswerLost, "messages_lost"),
        ([b"\xff"], AnswerLost, "messages_lost"),
        ([{}], AnswerLost, "messages_lost"),
        ([{"error": {"code": "overloaded", "message": "busy"}}], Refused, "overloaded"),
        (
            [{"n": 0}, {"n": 1, "done": True, "error": {"code": "no_worker", "message": "none"}}],
            Refused,
            "no_worker",
        ),
    ],
)
async def test_what_is_not_whole_raises_its_code(
    yard: Yard, script: list[Any], expected: type[ClientError], code: str
) -> None:
    with pytest.raises(expected) as caught:
        await yard.stream(*script).text()
    assert caught.value.code == code


async def test_an_answer_with_a_gap_is_cancelled(yard: Yard) -> None:
    with pytest.raises(AnswerLost):
        await yard.stream({"n": 0}, {"n": 2}).text()
    assert await yard.cancelled() == 1


async def test_silence_is_a_lost_gateway_and_any_word_is_not(yard: Yard) -> None:
    stream = yard.stream({"n": 0}, silence_s=0.2)
    reading = asyncio.create_task(stream.text())
    for number in (1, 2, 3):
        await asyncio.sleep(0.1)
        yard.gateway.say({"n": number, "chunks": []})
    assert not reading.done()
    with pytest.raises(GatewayLost):
        await reading


async def test_without_a_gateway_the_answer_fails_at_once(yard: Yard) -> None:
    await yard.gateway.bus.close()
    with pytest.raises(NobodyAnswers):
        await yard.stream(silence_s=60.0).text()


async def test_a_reader_that_does_not_read_is_bounded(yard: Yard) -> None:
    stream = yard.stream({"n": 0, "chunks": [chunk("a")]})
    reading = aiter(stream)
    await anext(reading)
    for number in range(WAITING_MAX + 2):
        yard.gateway.say({"n": number + 1, "chunks": []})
    await yard.bus.flush()
    with pytest.raises(ReaderTooSlow):
        await anext(reading)
    assert await yard.cancelled() == 1


async def test_leaving_in_the_middle_cancels_once(yard: Yard) -> None:
    stream = yard.stream({"n": 0}, {"n": 1, "chunks": [chunk("a"), chunk("b")]})
    async with stream:
        async for _ in stream:
            break
    stream.close()
    assert await yard.cancelled() == 1
    assert yard.bus._waiting == {}


async def test_a_stream_that_was_never_read_asks_nobody(yard: Yard) -> None:
    async with yard.stream():
        pass
    assert await yard.cancelled() == 0
    assert yard.gateway.answers == []
