"""Records in buckets, as the registry changes them, on a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus.errors import RecordChanged, StreamUnavailable
from bus.records import Record, Records
from tests.support.nats import NatsInTest


@pytest.fixture
async def records(nats_server: NatsInTest) -> AsyncIterator[Records]:
    await nats_server.provision()
    key_file = nats_server.key_file("registry", "registry-0")
    async with Records(nats_server.url, key_file, source="registry-0") as found:
        yield found


async def test_a_record_is_made_read_changed_and_deleted(records: Records) -> None:
    assert await records.get("nodes", "node-1") is None
    first = await records.put("nodes", "node-1", b"one", revision=0)
    assert await records.get("nodes", "node-1") == Record("node-1", b"one", first)
    second = await records.put("nodes", "node-1", b"two", revision=first)
    assert second > first
    await records.delete("nodes", "node-1", revision=second)
    assert await records.get("nodes", "node-1") is None


async def test_whoever_decided_on_an_old_revision_is_told(records: Records) -> None:
    first = await records.put("nodes", "node-1", b"one", revision=0)
    await records.put("nodes", "node-1", b"two", revision=first)
    for change in (
        records.put("nodes", "node-1", b"three", revision=first),
        records.put("nodes", "node-1", b"three", revision=0),
        records.delete("nodes", "node-1", revision=first),
    ):
        with pytest.raises(RecordChanged):
            await change
    found = await records.get("nodes", "node-1")
    assert found is not None
    assert found.value == b"two"


async def test_of_many_that_change_one_record_one_wins(records: Records) -> None:
    async def make(number: int) -> bool:
        try:
            await records.put("keys", "k", b"%d" % number, revision=0)
        except RecordChanged:
            return False
        return True

    assert sum(await asyncio.gather(*(make(n) for n in range(8)))) == 1


async def test_a_deleted_name_may_be_used_again(records: Records) -> None:
    first = await records.put("nodes", "n", b"one", revision=0)
    await records.delete("nodes", "n", revision=first)
    await records.put("nodes", "n", b"again", revision=0)
    assert [r.value for r in await records.all("nodes")] == [b"again"]


async def test_all_records_come_with_their_raw_names(records: Records) -> None:
    names = ["http://10.0.0.5:8000", "a/b.c >", "node-1"]
    for name in names:
        await records.put("nodes", name, name.encode(), revision=0)
    await records.put("models", "m", b"of another bucket", revision=0)
    found = await records.all("nodes")
    assert [(r.name, r.value) for r in found] == [(n, n.encode()) for n in sorted(names)]
    assert await records.all("tenants") == []


async def test_more_records_than_the_server_gives_at_once_are_all_read(records: Records) -> None:
    names = [f"node-{number:04}" for number in range(1100)]
    revisions = [await records.put("nodes", name, b"one", revision=0) for name in names]
    await records.put("nodes", names[0], b"two", revision=revisions[0])
    await records.delete("nodes", names[1], revision=revisions[1])
    found = await records.all("nodes")
    assert [r.name for r in found] == [names[0], *names[2:]]
    assert (found[0].value, found[1].value) == (b"two", b"one")


async def test_a_value_that_is_too_large_is_refused_in_words(records: Records) -> None:
    with pytest.raises(StreamUnavailable, match="maximum"):
        await records.put("nodes", "n", bytes(300_000), revision=0)


async def test_records_outlive_the_server(records: Records, nats_server: NatsInTest) -> None:
    first = await records.put("nodes", "n", b"one", revision=0)
    await nats_server.kill()
    await nats_server.start()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await records.get("nodes", "n") == Record("n", b"one", first)
                break
            except StreamUnavailable:
                await asyncio.sleep(0.1)
