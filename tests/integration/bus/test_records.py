"""Records in buckets, as the registry changes them, on a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.errors import RecordChanged, RecordRefused, StreamUnavailable
from bus.provision import provision
from bus.records import _TTL, Record, Records
from bus.streams import Bucket
from bus.subjects import PREFIX
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
    with pytest.raises(RecordRefused, match=r"nodes/n is not taken: .*: make .* smaller"):
        await records.put("nodes", "n", bytes(300_000), revision=0)


async def filled(records: Records, value: bytes) -> None:
    for number in range(1000):
        await records.put("keys", f"{len(value)}-{number}", value, revision=0)


async def test_a_bucket_that_is_full_says_so_and_still_lets_records_go(records: Records) -> None:
    first = await records.put("keys", "k", bytes(1000), revision=0)
    for size in (250_000, 1000):
        with pytest.raises(RecordRefused, match="max_bytes"):
            await filled(records, bytes(size))
    with pytest.raises(RecordRefused, match="max_bytes"):
        await records.put("keys", "k", bytes(2000), revision=first)
    await records.delete("keys", "k", revision=first)
    other = await records.get("keys", "1000-0")
    assert other is not None
    await records.delete("keys", "1000-0", revision=other.revision)
    await records.put("keys", "k", bytes(1000), revision=0)


async def info(server: NatsInTest, bucket: str) -> dict[str, Any]:
    """What the server says of the bucket's stream."""
    client = await server.client("provisioner", "provisioner")
    answer = await client.request(f"$JS.API.STREAM.INFO.KV_{bucket}", b"")
    found: dict[str, Any] = json.loads(answer.data)
    return found


async def held(server: NatsInTest, bucket: str) -> int:
    """Messages in the bucket: values of records and what deleted ones left behind."""
    return int((await info(server, bucket))["state"]["messages"])


async def test_what_was_deleted_leaves_one_marker_for_a_while_and_then_nothing(
    records: Records, nats_server: NatsInTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bucket in ("nodes", "keys"):
        for number in range(50):
            name = f"n{number}"
            first = await records.put(bucket, name, b"one", revision=0)
            second = await records.put(bucket, name, b"two", revision=first)
            await records.delete(bucket, name, revision=second)
        assert await held(nats_server, bucket) == 50
    monkeypatch.setitem(_TTL, "Nats-TTL", "1s")
    for number in range(50):
        first = await records.put("keys", f"n{number}", b"again", revision=0)
        await records.delete("keys", f"n{number}", revision=first)
    kept = await records.put("keys", "kept", b"this one", revision=0)
    async with asyncio.timeout(10):
        while await held(nats_server, "keys") > 1:  # noqa: ASYNC110  (the server's)
            await asyncio.sleep(0.05)
    assert await records.all("keys") == [Record("kept", b"this one", kept)]
    assert await records.put("keys", "n1", b"new", revision=0) > kept


class Earlier(Bucket):
    """As it was set up before markers had an end."""

    def config(self, prefix: str = PREFIX, replicas: int = 1) -> dict[str, Any]:
        found = {**super().config(prefix, replicas), "max_msgs_per_subject": 4}
        del found["allow_msg_ttl"]
        return found


async def test_a_bucket_of_an_earlier_version_lets_records_go_until_it_is_set_up_again(
    nats_server: NatsInTest,
) -> None:
    provisioner = nats_server.key_file("provisioner", "provisioner")
    await provision(nats_server.url, provisioner, wanted=[Earlier("keys", "Hashes of API keys")])
    key_file = nats_server.key_file("registry", "registry-0")
    async with Records(nats_server.url, key_file, source="registry-0") as records:
        first = await records.put("keys", "k", b"one", revision=0)
        await records.delete("keys", "k", revision=first)
        assert await records.get("keys", "k") is None
        await nats_server.provision()
        assert (await info(nats_server, "keys"))["config"]["allow_msg_ttl"]
        again = await records.put("keys", "k", b"two", revision=0)
        await records.delete("keys", "k", revision=again)
    assert await held(nats_server, "keys") == 1


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
