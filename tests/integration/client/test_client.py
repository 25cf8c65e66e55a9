"""The Python client, against a whole `up`: every process real, every permission in force."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.errors import NoRespondersError

from bus.clients import client_inbox
from components.client import (
    AnswerLost,
    CannotConnect,
    Client,
    ClientError,
    Delta,
    GatewayLost,
    NobodyAnswers,
    Refused,
    TimedOut,
)
from components.client import client as client_module
from schemas.client import CancelGeneration
from tests.integration.cli.yards import Yard
from tests.integration.client.clients import (
    CALL,
    HELLO,
    LONG,
    MODEL,
    client_of,
    idle,
    key_of,
    over_http,
    running,
)
from tests.support.nats import settled, until


async def test_streams_and_answers_are_those_of_http(up: Yard) -> None:
    chat = over_http(up, "/v1/chat/completions", messages=HELLO, **CALL)
    text = over_http(up, "/v1/completions", prompt="once", **CALL)
    async with client_of(up) as client:
        stream = client.chat(messages=HELLO, **CALL)
        assert await stream.text() == chat["choices"][0]["message"]["content"]
        usage = {k: v for k, v in chat["usage"].items() if k.endswith("_tokens")}
        assert stream.usage is not None
        assert stream.usage.items() >= usage.items()
        assert stream.requests[0].startswith("req-")
        assert await client.text(prompt="once", **CALL).text() == text["choices"][0]["text"]
        whole = await client.complete(messages=HELLO, **CALL)
        assert whole["choices"] == chat["choices"]
        whole = await client.complete(prompt="once", **CALL)
        assert whole["choices"] == text["choices"]


async def test_many_streams_at_once_do_not_mix(up: Yard) -> None:
    async with client_of(up) as client:
        streams = [client.text(prompt=f"number {i}", **CALL) for i in range(20)]
        texts = await asyncio.gather(*(stream.text() for stream in streams))
        for i, text in enumerate(texts[:5]):
            whole = over_http(up, "/v1/completions", prompt=f"number {i}", **CALL)
            assert whole["choices"][0]["text"] == text


async def test_choices_are_told_apart_and_finish(up: Yard) -> None:
    async with client_of(up) as client:
        deltas = [d async for d in client.chat(messages=HELLO, **{**CALL, "n": 2})]
        assert {d.choice for d in deltas} == {0, 1}
        assert [d.finish for d in deltas if d.finish] == ["length", "length"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "nobody/knows"}, "model_not_found"),
        ({"temperature": -5}, "invalid_value"),
        ({"max_tokens": 10**6}, "context_length_exceeded"),
        ({"messages": "hello"}, "invalid_type"),
    ],
)
async def test_a_refusal_has_the_code_of_http(up: Yard, change: Any, code: str) -> None:
    body = {**CALL, "messages": HELLO, **change}
    told = over_http(up, "/v1/chat/completions", **body)["error"]["code"]
    async with client_of(up) as client:
        with pytest.raises(Refused) as whole:
            await client.complete(**body)
        with pytest.raises(Refused) as streamed:
            await client.chat(**body).text()
    assert whole.value.code == streamed.value.code == told == code


async def test_whoever_stops_reading_cancels(up: Yard) -> None:
    async with client_of(up) as client:
        async for _ in client.chat(messages=HELLO, **LONG):
            break
        await idle(up)
        async with client.chat(messages=HELLO, **LONG) as stream:
            async for _ in stream:
                break
            assert await running(up) == 1
        await idle(up)
        with pytest.raises(TimedOut):
            await client.complete(messages=HELLO, timeout_s=0.2, **LONG)
        await idle(up)


async def test_a_client_that_vanishes_leaves_nothing_running(up: Yard) -> None:
    client = client_of(up)
    async with client:
        async for _ in client.chat(messages=HELLO, **LONG):
            assert client._bus._client is not None
            await client._bus._client.close()  # as a killed process would: no cancel, no goodbye
            break
        await idle(up)


async def test_who_is_there_is_told(up: Yard) -> None:
    async with client_of(up) as client:
        fleet = await client.fleet()
        assert {p.heartbeat.component for p in fleet.processes} >= {"gateway", "worker", "bridge"}
        assert await client.models() == [MODEL]
        assert (await client.model(MODEL)).context_tokens_max == 32_768
        engines = {e.record.engine: e for e in await client.engines()}
        assert {name: e.heard for name, e in engines.items()} == {
            "decode-0": True,
            "prefill-0": True,
        }
        assert await client.engines(missing=True) == []
        assert await client.nodes() == []
        made = await asyncio.to_thread(up.run, "nodes", "register", "n1")
        assert made.returncode == 0
        assert [node.node_id for node in await client.nodes()] == ["n1"]
        assert (await asyncio.to_thread(up.run, "nodes", "delete", "n1")).returncode == 0
        assert up.run("send-state", "--engine-id", "outside-1").returncode == 0
        async with asyncio.timeout(5):
            while "outside-1" not in [  # noqa: ASYNC110  (what changes is in another process)
                s.state.engine_id for s in await client.states()
            ]:
                await asyncio.sleep(0.05)


async def test_a_request_is_explained_to_its_own_tenant_and_to_no_other(up: Yard) -> None:
    async with client_of(up) as client, client_of(up, "acme") as other:
        stream = client.chat(messages=HELLO, **CALL)
        await stream.text()
        (request_id,) = stream.requests
        async with asyncio.timeout(10):
            while (await client.explain(request_id)).outcome != "finished":  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # the past reads what was recorded a moment ago
        told = await client.explain(request_id)
        assert (told.tenant, told.output_tokens) == ("default", 40)
        assert told.choices
        assert not (await other.explain(request_id)).found
        mine = other.text(prompt="once", **CALL)
        await mine.text()
        async with asyncio.timeout(10):
            while not (await other.explain(mine.requests[0])).found:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await other.explain(mine.requests[0])).tenant == "acme"


async def test_what_nobody_serves_is_told_at_once(up: Yard) -> None:
    async with client_of(up) as client:
        with pytest.raises(NobodyAnswers):
            await client.model("nobody/knows")


async def test_without_a_server_or_a_key_there_is_no_connection(
    up: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CONNECT_S", 0.5)
    for url, key in (
        ("nats://127.0.0.1:9", key_of(up, "default")),
        (up.page().nats_url, None),
        (up.page().nats_url, tmp_path / "missing.nk"),
    ):
        with pytest.raises(CannotConnect):
            async with Client(url, key_file=key):
                pass


async def test_a_tenant_neither_asks_nor_hears_nor_cancels_for_another(up: Yard) -> None:
    """With the other's key: the server refuses, and nothing is answered."""
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error))

    spy = await nats.connect(
        up.page().nats_url,
        nkeys_seed=str(key_of(up, "acme")),
        inbox_prefix=client_inbox("acme"),
        error_cb=on_error,
    )
    heard: list[Any] = []

    async def hear(message: Any) -> None:
        heard.append(message)

    denied = [
        *("_INBOX_client.default.>", "_INBOX_client.>", "_INBOX_gateway-0.>", ">", "yard.>"),
        *("yard.ask.chat.complete.default", "yard.out.*.*"),
    ]
    for subject in denied:
        await spy.subscribe(subject, cb=hear)
    said = [
        *("yard.ask.chat.complete.default", "yard.ask.text.complete.default"),
        *("yard.ask.generation.cancel.default", "_INBOX_client.default.x.1"),
        *("yard.cmd.attempt.cancel.decode-0", "yard.ask.engine.control.decode-0"),
        *("yard.ask.request.explain", "yard.cmd.request.cancel.scheduler-0"),
    ]
    for subject in said:
        await spy.publish(subject, b"{}")
    await settled(spy, "acme", "client")
    assert len(refused) == len(denied) + len(said)
    # What it may ask, but with the answer to the other's inbox: the gateway refuses.
    async with client_of(up) as client:
        stream = client.chat(messages=HELLO, **CALL)
        async for _ in stream:
            assert stream._asked is not None
            address = stream._asked.address
            await spy.publish("yard.ask.chat.complete.acme", b"{}", reply=address)
            cancel = CancelGeneration(reply=address).model_dump_json().encode()
            await spy.publish("yard.ask.generation.cancel.acme", cancel)
            await settled(spy, "acme", "client")
        assert stream.usage is not None
        assert stream.usage["completion_tokens"] == 40
    with pytest.raises(NoRespondersError):
        await spy.request("yard.ask.engine.show_states.nobody", b"{}", timeout=2)
    assert heard == []
    await spy.close()


async def test_a_gateway_that_dies_is_noticed_and_the_next_one_answers(up: Yard) -> None:
    async with client_of(up, silence_s=3.0) as client:
        deltas: list[Delta] = []

        async def read() -> None:
            async for delta in client.chat(messages=HELLO, **LONG):
                deltas.append(delta)
                if len(deltas) == 3:
                    _kill(up.pid("gateway-0"))

        with pytest.raises(GatewayLost) as lost:
            await read()
        assert lost.value.code == "gateway_lost"
        assert len(deltas) >= 3
        expected = await _again(client)
        assert expected == await client.chat(messages=HELLO, **CALL).text()


def _kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def _again(client: Client) -> str:
    """Ask until somebody answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await client.chat(messages=HELLO, **CALL).text()
            except ClientError:
                await asyncio.sleep(0.2)


async def test_a_stream_over_an_absence_of_the_server_is_whole_or_says_that_it_is_not(
    up: Yard,
) -> None:
    """nats-server is killed in the middle of twenty streams, and started again by `up`."""
    paced = {**CALL, "max_tokens": 2000}
    expected = over_http(up, "/v1/completions", prompt="p", **paced)["choices"][0]["text"]
    async with client_of(up) as client:

        async def one() -> str | ClientError:
            try:
                return await client.text(prompt="p", **paced).text()
            except ClientError as error:
                return error

        tasks = [asyncio.create_task(one()) for _ in range(20)]
        await until(lambda: client._bus.counters["published_total"] >= 20, "all asked")
        await asyncio.sleep(0.5)
        _kill(up.pid("nats-server"))
        ends = await asyncio.gather(*tasks)
        assert client._bus.counters["reconnects_total"] == 1
        assert await _again(client)
    for end in ends:
        assert end == expected or isinstance(end, AnswerLost | GatewayLost), repr(end)[:200]
