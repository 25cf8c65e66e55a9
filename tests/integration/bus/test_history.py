"""Reading the past from account HISTORY."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from nats.aio.client import Client

from bus import history as history_module
from bus import jetstream, subjects
from bus.errors import MalformedMessage, NotConnected, StreamUnavailable
from bus.history import BATCH_MESSAGES_MAX, Gap, History, Stored, StreamState, decode_stored
from bus.provision import provision
from bus.server import free_port
from bus.streams import BY_NAME
from tests.support.nats import NatsInTest, settled, stored, until

LOAD = "yard.evt.engine.load_reported.decode-0"


@pytest.fixture
async def yard(nats_server: NatsInTest) -> NatsInTest:
    await nats_server.provision()
    return nats_server


@pytest.fixture
async def worker(yard: NatsInTest) -> Client:
    return await yard.client("worker", "decode-0")


@pytest.fixture
async def gaps() -> list[Gap]:
    return []


@pytest.fixture
async def history(yard: NatsInTest, gaps: list[Gap]) -> AsyncIterator[History]:
    key_file = yard.key_file("history", "history")
    async with History(yard.url, key_file, on_gap=gaps.append) as reader:
        yield reader


async def store(worker: Client, count: int, subject: str = LOAD, size: int = 10) -> None:
    for number in range(count):
        await worker.publish(subject, b"%d" % number + bytes(size))
    await settled(worker, "decode-0")


async def test_an_empty_stream_reads_as_nothing(history: History) -> None:
    assert [s async for s in history.read("REQUESTS")] == []
    assert await history.last_seq("REQUESTS") == 0
    limits = BY_NAME["REQUESTS"]
    assert await history.state("REQUESTS") == StreamState(
        0, 0, 0, 0, limits.max_bytes, limits.max_age_s
    )


async def test_everything_is_read_once_in_order_over_many_batches(
    worker: Client, history: History
) -> None:
    count = BATCH_MESSAGES_MAX * 3 + 7
    await store(worker, count)
    await stored(history, "ENGINE_STATE", count)
    read = [s async for s in history.read("ENGINE_STATE")]
    assert [s.seq for s in read] == list(range(1, count + 1))
    assert read[41].data == b"41" + bytes(10)
    assert {s.subject for s in read} == {LOAD}
    assert all(s.time_ms > 1_700_000_000_000 for s in read)
    assert sorted(s.time_ms for s in read) == [s.time_ms for s in read]


async def test_reading_starts_where_it_is_told(worker: Client, history: History) -> None:
    await store(worker, 20)
    await stored(history, "ENGINE_STATE", 20)
    assert [s.seq async for s in history.read("ENGINE_STATE", start_seq=17)] == [17, 18, 19, 20]
    assert [s.seq async for s in history.read("ENGINE_STATE", start_seq=21)] == []


async def test_a_filter_takes_wildcards(yard: NatsInTest, worker: Client, history: History) -> None:
    await store(worker, 3)
    bridge = await yard.client("bridge", "bridge-0")
    await bridge.publish(subjects.engine_states_received("http://a"), b"elrar")
    await settled(bridge, "bridge-0")
    await store(worker, 2)
    await stored(history, "ENGINE_STATE", 6)
    one = subjects.engine_states_received("http://a")
    loads = subjects.engine_load_reported(subjects.ANY)
    assert [s.seq async for s in history.read("ENGINE_STATE", subject=one)] == [4]
    read = [s.seq async for s in history.read("ENGINE_STATE", subject=loads)]
    assert read == [1, 2, 3, 5, 6]
    nothing = subjects.engine_states_received("http://b")
    assert [s async for s in history.read("ENGINE_STATE", subject=nothing)] == []


async def test_messages_larger_than_a_batch_come_one_by_one(
    worker: Client, history: History
) -> None:
    frames = subjects.frames("gateway-0", "decode-0")
    await store(worker, 4, frames, size=3_000_000)
    await stored(history, "TOKENS", 4)
    sizes = [len(s.data) async for s in history.read("TOKENS")]
    assert sizes == [3_000_001] * 4


async def test_reading_ends_with_what_was_the_newest_when_it_began(
    worker: Client, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "BATCH_MESSAGES_MAX", 2)
    await store(worker, 3)
    await stored(history, "ENGINE_STATE", 3)
    read = []
    async for message in history.read("ENGINE_STATE"):
        read.append(message.seq)
        if len(read) == 1:
            await store(worker, 5)
            await stored(history, "ENGINE_STATE", 8)
    assert read == [1, 2, 3]


async def test_what_was_dropped_before_it_was_read_is_told(
    yard: NatsInTest, worker: Client, history: History, gaps: list[Gap]
) -> None:
    small = replace(BY_NAME["ENGINE_STATE"], max_bytes=20_000)
    await provision(yard.url, yard.key_file("provisioner", "provisioner"), wanted=[small])
    await store(worker, 300, size=200)
    await stored(history, "ENGINE_STATE", 300)
    first = (await history.state("ENGINE_STATE")).first_seq
    assert first > 100
    read = [s.seq async for s in history.read("ENGINE_STATE", start_seq=5)]
    assert read == list(range(first, 301))
    assert gaps == [Gap("ENGINE_STATE", 5, first - 1)]


async def collect(
    history: History, stream: str, into: list[Stored], start_seq: int | None = None
) -> None:
    async for message in history.follow(stream, start_seq=start_seq):
        into.append(message)  # noqa: PERF401  (it never ends, and is looked at meanwhile)


async def test_following_shows_what_comes(worker: Client, history: History) -> None:
    await store(worker, 3)
    await stored(history, "ENGINE_STATE", 3)
    new: list[Stored] = []
    everything: list[Stored] = []
    tasks = [
        asyncio.create_task(collect(history, "ENGINE_STATE", new)),
        asyncio.create_task(collect(history, "ENGINE_STATE", everything, start_seq=1)),
    ]
    try:
        await until(lambda: len(everything) == 3)
        for total in (4, 5):
            await store(worker, 1)
            await until(lambda total=total: len(everything) == total, deadline_s=1)  # type: ignore[misc]
        await until(lambda: [s.seq for s in new] == [4, 5])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_following_survives_a_restart_and_a_memory_stream_that_begins_anew(
    yard: NatsInTest, worker: Client, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "SILENCE_S", 0.2)
    frames = subjects.frames("gateway-0", "decode-0")
    kept: list[Stored] = []
    tokens: list[Stored] = []
    tasks = [
        asyncio.create_task(collect(history, "ENGINE_STATE", kept, start_seq=1)),
        asyncio.create_task(collect(history, "TOKENS", tokens, start_seq=1)),
    ]
    try:
        await store(worker, 2)
        await store(worker, 2, frames)
        await until(lambda: len(kept) == len(tokens) == 2)
        await yard.kill()
        await yard.start()
        await yard.provision()
        speaker = await yard.client("worker", "prefill-0")
        await speaker.publish("yard.evt.engine.load_reported.prefill-0", b"later")
        await speaker.publish(subjects.frames("gateway-0", "prefill-0"), b"later")
        await settled(speaker, "prefill-0")
        await until(lambda: kept[-1].data == tokens[-1].data == b"later")
        assert [s.seq for s in kept] == [1, 2, 3]
        assert [s.seq for s in tokens] == [1, 2, 1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_two_readers_of_one_connection_do_not_mix(worker: Client, history: History) -> None:
    await store(worker, 1500)
    await stored(history, "ENGINE_STATE", 1500)

    async def seqs() -> list[int]:
        return [s.seq async for s in history.read("ENGINE_STATE")]

    for read in await asyncio.gather(seqs(), seqs()):
        assert read == list(range(1, 1501))


async def test_a_stream_that_is_not_there_is_told(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "SILENCE_S", 0.1)
    with pytest.raises(StreamUnavailable):
        await history.last_seq("NOTHING")


async def test_a_stream_that_was_not_provisioned_is_told(nats_server: NatsInTest) -> None:
    key_file = nats_server.key_file("history", "history")
    async with History(nats_server.url, key_file) as reader:
        with pytest.raises(StreamUnavailable, match="stream not found"):
            await reader.last_seq("REQUESTS")


async def test_history_without_a_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(NotConnected):
        await History(f"nats://127.0.0.1:{free_port()}").connect()


def test_what_is_stored_but_no_message_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode_stored(Stored(1, 1, LOAD, b"junk"))


async def test_a_connection_that_is_lost_while_it_asks_is_told(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(history._client, "publish", lost)
    with pytest.raises(StreamUnavailable, match="FLEET: ConnectionResetError"):
        await history.state("FLEET")
