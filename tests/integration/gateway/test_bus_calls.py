"""The calls that produce tokens, asked over the bus: as over HTTP, and nothing is left running."""

import asyncio
import json
from typing import Any

import pytest

from bus import subjects
from bus.bus import Asked
from bus.clients import client_inbox
from bus.memory_bus import MemoryBus
from components.domain.pages import page_hashes, tenant_salt
from components.gateway.service import Gateway
from components.gateway.settings import GatewaySettings
from schemas.client import CancelGeneration, CancelGenerationReply, CompleteChatReply
from tests.integration.gateway.fleet import EPOCH, MODEL, Yard, running_gateway, until
from tests.support.host import connected_host

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
CALL: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "seed": 7, "ignore_eos": True}
LONG = {**CALL, "max_tokens": 20_000}


class Caller:
    """A client of one tenant that only knows the protocol."""

    def __init__(self, yard: Yard, tenant: str = "acme") -> None:
        self.tenant = tenant
        self.bus = MemoryBus(
            yard.hub, source=f"client-{tenant}", epoch=EPOCH, inbox_prefix=client_inbox(tenant)
        )
        self.heard: list[Any] = []

    async def connect(self) -> "Caller":
        await self.bus.connect()
        return self

    def call(self, body: Any, *, text: bool = False, tenant: str | None = None) -> Asked:
        subject = (subjects.complete_text if text else subjects.complete_chat)(
            tenant or self.tenant
        )
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.bus.call(subject, data, self._take)

    def _take(self, data: bytes | None) -> None:
        self.heard.append(None if data is None else json.loads(data))

    async def last(self, timeout_s: float = 5.0) -> Any:
        """The message that ends the answer."""
        await until(
            lambda: self.heard and ("n" not in self.heard[-1] or self.heard[-1].get("done")),
            "the end",
            timeout_s,
        )
        return self.heard[-1]

    @property
    def chunks(self) -> list[Any]:
        return [c for m in self.heard for c in m.get("chunks", ())]

    @property
    def numbers(self) -> list[int]:
        return [m["n"] for m in self.heard]


async def over_http(yard: Yard, path: str, body: dict[str, Any]) -> Any:
    async with yard.http() as http:
        return (await http.post(path, json=body)).json()


def without_names(answer: Any) -> Any:
    """An answer without what differs from call to call."""
    return {k: v for k, v in answer.items() if k not in {"id", "created"}}


@pytest.mark.parametrize("n", [1, 3])
async def test_an_answer_in_one_is_that_of_http(n: int) -> None:
    async with running_gateway() as yard:
        caller = await Caller(yard).connect()
        body = {**CALL, "n": n, "messages": HELLO}
        caller.call(body)
        whole = await caller.last()
        assert without_names(whole) == without_names(
            await over_http(yard, "/v1/chat/completions", body)
        )
        assert whole["id"].startswith("chatcmpl-")
        assert len(caller.heard) == 1


@pytest.mark.parametrize("text", [False, True])
async def test_a_streamed_answer_has_the_chunks_of_sse_numbers_and_usage(text: bool) -> None:
    async with running_gateway() as yard:
        caller = await Caller(yard).connect()
        asks = {"prompt": ["once", "upon a time"]} if text else {"messages": HELLO}
        path = "/v1/completions" if text else "/v1/chat/completions"
        body = {**CALL, **asks, "stream": True, "stream_options": {"include_usage": True}}
        caller.call(body, text=text)
        end = await caller.last()
        async with yard.http() as http:
            sse = (await http.post(path, json=body)).text
        events = [line[6:] for line in sse.splitlines() if line.startswith("data: {")]
        expected = [without_names(json.loads(event)) for event in events]

        def by_choice(chunks: list[Any]) -> Any:
            """Streams of several prompts may interleave in another way."""
            return sorted(chunks, key=lambda c: [choice["index"] for choice in c["choices"]] or [9])

        assert by_choice([without_names(c) for c in caller.chunks]) == by_choice(expected)
        assert caller.numbers == list(range(len(caller.heard)))
        assert len(caller.heard[0]["requests"]) == (2 if text else 1)
        assert end["usage"] == expected[-1]["usage"]
        for message in caller.heard:
            CompleteChatReply.model_validate(message)


async def test_the_tenant_of_the_subject_is_in_the_card_and_in_the_hashes_of_its_pages() -> None:
    async with running_gateway(tenant_secret="s" * 32) as yard:
        body = {**CALL, "prompt": "many words " * 20}
        for tenant in ("acme", "globex"):
            caller = await Caller(yard, tenant).connect()
            caller.call(body, text=True)
            await caller.last()
        cards = [m.card for m in yard.fleet.scheduled]
        assert [c.tenant for c in cards] == ["acme", "globex"]
        assert cards[0].page_hashes != cards[1].page_hashes
        ids = yard.fleet.attempts[0].body.prompt_token_ids
        expected = page_hashes(ids, tenant_salt(b"s" * 32, "acme"))
        assert cards[0].page_hashes[:8] == expected[0].to_bytes(8, "little")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "invalid_json"),
        (b"\xff", "invalid_json"),
        ({"messages": HELLO}, "missing_required_parameter"),
        ({**CALL, "model": "nobody/knows", "messages": HELLO}, "model_not_found"),
        ({**CALL, "messages": HELLO, "temperature": -5}, "invalid_value"),
        ({**CALL, "messages": HELLO, "max_tokens": 40_000}, "context_length_exceeded"),
        ({**CALL, "messages": HELLO, "stream": True, "pad": "x" * 5000}, "request_too_large"),
    ],
)
async def test_what_is_wrong_is_told_as_over_http(body: Any, code: str) -> None:
    async with running_gateway(body_bytes_max=4096) as yard:
        caller = await Caller(yard).connect()
        caller.call(body)
        error = (await caller.last())["error"]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with yard.http() as http:
            answer = await http.post("/v1/chat/completions", content=data)
        assert error == answer.json()["error"]
        assert error["code"] == code
        assert yard.counters["bus_calls_refused_total"] == 1


async def test_a_refusal_of_the_fleet_ends_a_stream_by_its_code() -> None:
    async with running_gateway() as yard:
        yard.fleet.refuse_with = "queue_full"
        caller = await Caller(yard).connect()
        caller.call({**CALL, "messages": HELLO, "stream": True})
        end = await caller.last()
        assert (end["error"]["code"], end["chunks"]) == ("queue_full", [])
        assert caller.numbers == [0, 1]


async def test_a_cancelled_answer_ends_at_once_and_nothing_more_is_said() -> None:
    async with running_gateway() as yard:
        yard.fleet.itl_s = 0.01
        caller = await Caller(yard).connect()
        asked = caller.call({**LONG, "messages": HELLO, "stream": True})
        await until(lambda: len(caller.heard) > 5, "tokens")
        reply = await caller.bus.ask(
            subjects.cancel_generation("acme"),
            CancelGeneration(reply=asked.address),
            CancelGenerationReply,
            timeout_s=2.0,
        )
        heard = len(caller.heard)
        assert reply.reply == asked.address
        await until(lambda: yard.fleet.cancelled_attempts, "the worker is told")
        await asyncio.sleep(0.1)
        assert len(caller.heard) == heard
        assert yard.counters["bus_calls_cancelled_total"] == 1


async def test_no_tenant_cancels_the_answer_of_another() -> None:
    async with running_gateway() as yard:
        yard.fleet.itl_s = 0.01
        caller, other = await Caller(yard).connect(), await Caller(yard, "globex").connect()
        asked = caller.call({**CALL, "messages": HELLO, "stream": True})
        await until(lambda: len(caller.heard) > 2, "tokens")
        cancel = CancelGeneration(reply=asked.address)
        other.bus.publish(subjects.cancel_generation("globex"), cancel)
        await other.bus.flush()
        assert (await caller.last())["usage"]["completion_tokens"] == 24


async def test_a_client_that_leaves_is_noticed_with_the_next_token() -> None:
    async with running_gateway() as yard:
        yard.fleet.itl_s = 0.01
        caller = await Caller(yard).connect()
        caller.call({**LONG, "messages": HELLO, "stream": True})
        await until(lambda: len(caller.heard) > 5, "tokens")
        await caller.bus.close()
        await until(lambda: yard.fleet.cancelled_attempts, "the worker is told", 1.0)
        assert yard.counters["bus_calls_gone_total"] == 1


async def test_a_client_that_leaves_before_the_first_token_is_noticed_by_the_silence() -> None:
    async with running_gateway(client_silence_s=0.2) as yard:
        yard.fleet.hold.clear()
        caller = await Caller(yard).connect()
        caller.call({**LONG, "messages": HELLO, "stream": True})
        await until(lambda: yard.fleet.attempts, "the attempt")
        await caller.bus.close()
        await until(lambda: yard.fleet.cancelled_attempts, "the worker is told", 2.0)
        yard.fleet.hold.set()


async def test_a_client_that_waits_hears_that_its_gateway_lives() -> None:
    async with running_gateway(client_silence_s=0.1) as yard:
        yard.fleet.hold.clear()
        caller = await Caller(yard).connect()
        caller.call({**CALL, "messages": HELLO, "stream": True})
        await until(lambda: len(caller.heard) >= 4, "three empty messages")
        assert caller.heard[1:4] == [{"n": n, "chunks": []} for n in (1, 2, 3)]
        yard.fleet.hold.set()
        assert (await caller.last())["usage"]["completion_tokens"] == 24
        assert caller.numbers == list(range(len(caller.heard)))


async def test_an_answer_in_one_has_its_time_and_is_then_cancelled() -> None:
    async with running_gateway(client_whole_s=0.2) as yard:
        yard.fleet.hold.clear()
        caller = await Caller(yard).connect()
        caller.call({**CALL, "messages": HELLO})
        error = (await caller.last())["error"]
        assert (error["code"], "as a stream" in error["message"]) == ("deadline_exceeded", True)
        await until(lambda: yard.fleet.cancelled_requests, "the scheduler is told")
        yard.fleet.hold.set()


async def test_while_the_bus_is_away_tokens_wait_and_then_leave_merged() -> None:
    async with running_gateway(client_rejoin_s=0.1, client_silence_s=0.2) as yard:
        yard.fleet.itl_s = 0.02
        caller = await Caller(yard).connect()
        caller.call({**CALL, "max_tokens": 60, "messages": HELLO, "stream": True})
        await until(lambda: len(caller.heard) > 5, "tokens")
        yard.hub.partition("gateway-0")
        await asyncio.sleep(0.1)
        yard.hub.heal("gateway-0")
        end = await caller.last(10.0)
        assert end["usage"]["completion_tokens"] == 60
        assert caller.numbers == list(range(len(caller.heard)))
        body = {**CALL, "max_tokens": 60, "messages": HELLO}
        whole = await over_http(yard, "/v1/chat/completions", body)
        said = [c["choices"][0]["delta"].get("content", "") for c in caller.chunks]
        assert "".join(said) == whole["choices"][0]["message"]["content"]


async def test_a_call_that_arrives_twice_is_answered_once() -> None:
    async with running_gateway() as yard:
        yard.fleet.hold.clear()
        caller = await Caller(yard).connect()
        body = json.dumps({**CALL, "messages": HELLO}).encode()
        asked = caller.call(body)
        caller.bus._post(subjects.complete_chat("acme"), body, asked.address)
        await until(lambda: "bus_calls_repeated_total" in yard.counters, "the second is seen")
        yard.fleet.hold.set()
        await caller.last()
        await asyncio.sleep(0.05)
        assert (len(caller.heard), len(yard.fleet.scheduled)) == (1, 1)


async def test_calls_beyond_the_limit_are_refused_and_not_queued() -> None:
    async with running_gateway(requests_max=1) as yard:
        yard.fleet.hold.clear()
        first, second = await Caller(yard).connect(), await Caller(yard).connect()
        first.call({**CALL, "messages": HELLO})
        await until(lambda: yard.fleet.attempts, "the first runs")
        second.call({**CALL, "messages": HELLO})
        assert (await second.last())["error"]["code"] == "overloaded"
        yard.fleet.hold.set()
        await first.last()


async def test_a_gateway_that_drains_ends_what_runs_and_leaves_new_calls_to_others() -> None:
    async with running_gateway() as yard:
        yard.fleet.itl_s = 0.01
        caller, late = await Caller(yard).connect(), await Caller(yard).connect()
        caller.call({**CALL, "messages": HELLO, "stream": True})
        await until(lambda: len(caller.heard) > 2, "tokens")
        draining = asyncio.create_task(yard.gateway.drain(5.0))
        await asyncio.sleep(0.05)
        late.call({**CALL, "messages": HELLO})
        await until(lambda: late.heard, "an answer")
        assert late.heard == [None], "no other gateway is here"
        assert (await caller.last())["usage"]["completion_tokens"] == 24
        await draining


async def test_gateways_share_the_calls_and_only_the_one_that_has_it_cancels() -> None:
    async with (
        running_gateway() as yard,
        connected_host("gateway", "gateway-1", hub=yard.hub) as host,
    ):
        second = Gateway(host, GatewaySettings(port=0))
        await second.start()
        caller = await Caller(yard).connect()
        for _ in range(10):
            caller.call({**CALL, "model": "nobody/knows", "messages": HELLO})
        await until(lambda: len(caller.heard) == 10, "ten refusals")
        counts = [h.counters["bus_calls_refused_total"] for h in (yard.host, host)]
        assert sum(counts) == 10
        assert min(counts) > 0

        await second._calls.leave()  # so that the first one has the stream
        yard.fleet.itl_s = 0.01
        asked = caller.call({**LONG, "messages": HELLO, "stream": True})
        await until(lambda: len(caller.heard) > 12, "tokens")
        answers = await caller.bus.ask_all(
            subjects.cancel_generation("acme"),
            CancelGeneration(reply=asked.address),
            CancelGenerationReply,
            wait_s=0.3,
        )
        assert [a.source for a in answers] == ["gateway-0"]
        await second.stop()


# What is too large for one message.


async def test_one_part_that_is_too_large_ends_its_stream_with_a_reason():
    async with running_gateway() as yard:
        yard.fleet.itl_s = 0.01
        caller = await Caller(yard).connect()
        caller.call({**LONG, "messages": HELLO, "stream": True, "logprobs": True})
        await until(lambda: len(caller.heard) > 5, "tokens")
        yard.hub.payload_bytes_max = 300
        end = await caller.last()
        assert (end["error"]["code"], end["chunks"]) == ("answer_too_large", [])
        await until(lambda: yard.fleet.cancelled_attempts, "the worker is told")
        assert caller.numbers == list(range(len(caller.heard)))


async def test_an_answer_in_one_that_is_too_large_is_refused_with_a_reason():
    async with running_gateway() as yard:
        caller = await Caller(yard).connect()
        yard.fleet.hold.clear()
        caller.call({**CALL, "messages": HELLO})
        await until(lambda: yard.fleet.attempts, "the attempt")
        yard.hub.payload_bytes_max = 300
        yard.fleet.hold.set()
        error = (await caller.last())["error"]
        assert (error["code"], "as a stream" in error["message"]) == ("answer_too_large", True)
