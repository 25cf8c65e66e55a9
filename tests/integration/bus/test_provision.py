"""Streams and buckets on a real JetStream."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from nats.errors import Error as NatsError

from bus import subjects
from bus.errors import NotConnected, StreamUnavailable
from bus.history import History, decode_stored
from bus.provision import provision
from bus.server import NatsServer, free_port
from bus.streams import BUCKETS, BY_NAME, STREAMS, Stream
from schemas.body import BodyPublished
from schemas.engine import EngineLoadReported, EngineStatesReceived, KvPagesChanged
from schemas.examples import example
from schemas.fleet import FleetJoined
from schemas.journal import JournalAppended
from schemas.message import Message
from schemas.request import RequestEventsBatched
from tests.support.nats import NatsInTest, settled, stored

NAMES = [s.name for s in STREAMS] + [b.stream for b in BUCKETS]


def provisioner(server: NatsInTest) -> Path:
    return server.key_file("provisioner", "provisioner")


async def config_of(server: NatsInTest, stream: str) -> dict[str, Any]:
    client = await server.client("provisioner", "provisioner")
    answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=2)
    config: dict[str, Any] = json.loads(answer.data)["config"]
    return config


async def test_the_second_run_changes_nothing(nats_server: NatsInTest) -> None:
    first = await provision(nats_server.url, provisioner(nats_server))
    assert first.created == NAMES
    second = await provision(nats_server.url, provisioner(nats_server))
    assert second.unchanged == NAMES
    assert second.created == second.updated == []


async def test_it_survives_a_restart_of_the_server(nats_server: NatsInTest) -> None:
    await nats_server.provision()
    await nats_server.kill()
    await nats_server.start()
    again = await provision(nats_server.url, provisioner(nats_server))
    in_memory = [s.name for s in STREAMS if s.storage == "memory"]
    assert again.updated == []
    assert set(again.created) <= set(in_memory)


async def test_a_changed_limit_is_mended_and_what_others_set_stays(
    nats_server: NatsInTest,
) -> None:
    await nats_server.provision()
    smaller = replace(BY_NAME["REQUESTS"], max_bytes=1024 * 1024)
    done = await provision(nats_server.url, provisioner(nats_server), wanted=[smaller])
    assert done.updated == ["REQUESTS"]
    assert (await config_of(nats_server, "REQUESTS"))["max_bytes"] == 1024 * 1024
    client = await nats_server.client("provisioner", "provisioner")
    config = await config_of(nats_server, "REQUESTS")
    by_hand = {**config, "max_msg_size": 777_777}
    await client.request("$JS.API.STREAM.UPDATE.REQUESTS", json.dumps(by_hand).encode(), timeout=2)
    done = await provision(nats_server.url, provisioner(nats_server))
    assert done.updated == ["REQUESTS"]
    config = await config_of(nats_server, "REQUESTS")
    assert config["max_bytes"] == BY_NAME["REQUESTS"].max_bytes
    assert config["max_msg_size"] == 777_777


class Compressed(Stream):
    """As streams were made in the past."""

    def config(self, prefix: str = subjects.PREFIX, replicas: int = 1) -> dict[str, Any]:
        return {**super().config(prefix, replicas), "compression": "s2"}


async def test_a_stream_that_was_compressed_is_read_on_and_compressed_no_more(
    nats_server: NatsInTest,
) -> None:
    compressed = Compressed(**asdict(BY_NAME["ENGINE_STATE"]))
    await provision(nats_server.url, provisioner(nats_server), wanted=[compressed])
    worker = await nats_server.client("worker", "decode-1")
    sent = [b"%d" % n + b"x" * 500_000 for n in range(40)]  # blocks hold 8 MB
    for data in sent[:20]:
        await worker.publish(subjects.engine_load_reported("decode-1"), data)
    await worker.flush()
    async with History(nats_server.url, nats_server.key_file("history", "history")) as history:
        await stored(history, "ENGINE_STATE", 20)
        done = await provision(nats_server.url, provisioner(nats_server), wanted=STREAMS)
        assert done.updated == ["ENGINE_STATE"]
        for data in sent[20:]:
            await worker.publish(subjects.engine_load_reported("decode-1"), data)
        await worker.flush()
        await stored(history, "ENGINE_STATE", 40)
        assert [stored.data async for stored in history.read("ENGINE_STATE")] == sent


@pytest.mark.parametrize("name", NAMES)
async def test_every_word_of_the_table_is_in_force(nats_server: NatsInTest, name: str) -> None:
    await nats_server.provision()
    found = await config_of(nats_server, name)
    configs = [s.config() for s in STREAMS] + [b.config() for b in BUCKETS]
    (wanted,) = [c for c in configs if c["name"] == name]
    different = {k: (found.get(k), v) for k, v in wanted.items() if (found.get(k) or 0) != (v or 0)}
    assert different == {}


async def test_whoever_may_not_create_is_told(nats_server: NatsInTest) -> None:
    with pytest.raises(StreamUnavailable):
        await provision(
            nats_server.url, nats_server.key_file("gateway", "gateway-0"), ready_timeout_s=0.3
        )


async def test_it_needs_a_server() -> None:
    with pytest.raises(NotConnected):
        await provision(f"nats://127.0.0.1:{free_port()}", ready_timeout_s=0.3)


async def test_it_works_without_keys_and_with_a_prefix(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    url = await server.start()
    try:
        done = await provision(url, prefix="depot")
        assert done.created == NAMES
    finally:
        await server.kill()


async def test_a_registry_keeps_records_by_revision(nats_server: NatsInTest) -> None:
    """Any NATS client finds an ordinary bucket; a stale revision is refused; nobody purges."""
    await nats_server.provision()
    client = await nats_server.client("registry", "registry-0", error_cb=_ignore)
    bucket = await client.jetstream(timeout=1).key_value("nodes")
    first = await bucket.create("decode-0", b"one")
    second = await bucket.update("decode-0", b"two", last=first)
    with pytest.raises(NatsError):
        await bucket.update("decode-0", b"three", last=first)
    entry = await bucket.get("decode-0")
    assert (entry.value, entry.revision) == (b"two", second)


EVENTS: list[tuple[str, str, str, str, type[Message]]] = [
    (
        "ENGINE_STATE",
        "worker",
        "decode-0",
        subjects.engine_load_reported("decode-0"),
        EngineLoadReported,
    ),
    (
        "ENGINE_STATE",
        "bridge",
        "bridge-0",
        subjects.engine_states_received("http://10.0.0.7:8000"),
        EngineStatesReceived,
    ),
    ("KV_EVENTS", "worker", "decode-0", subjects.kv_pages_changed("decode-0"), KvPagesChanged),
    (
        "REQUESTS",
        "router",
        "router-0",
        subjects.request_events_batched("router-0"),
        RequestEventsBatched,
    ),
    (
        "JOURNAL",
        "scheduler",
        "scheduler-0",
        subjects.journal_appended("scheduler-0"),
        JournalAppended,
    ),
    ("FLEET", "registry", "registry-0", subjects.fleet_joined("decode-0"), FleetJoined),
    ("INFLIGHT", "gateway", "gateway-0", subjects.body_published("req-1"), BodyPublished),
]


async def test_what_components_say_is_kept_where_the_table_puts_it(
    nats_server: NatsInTest,
) -> None:
    """From a component's bus, under its own permissions, to a reader in the other account."""
    await nats_server.provision()
    for _, component, instance, subject, message in EVENTS:
        bus = await nats_server.bus(component, instance)
        bus.publish(subject, example(message))
        await bus.flush()
    async with History(nats_server.url, nats_server.key_file("history", "history")) as history:
        kept = [
            (stream.name, stored.subject, decode_stored(stored))
            for stream in STREAMS
            async for stored in history.read(stream.name)
        ]
    assert sorted((name, subject) for name, subject, _ in kept) == sorted(
        (name, subject) for name, _, _, subject, _ in EVENTS
    )
    by_subject = {subject: decoded for _, subject, decoded in kept}
    for _, _, instance, subject, message in EVENTS:
        assert by_subject[subject].message == example(message)
        assert by_subject[subject].source == instance


async def test_a_body_is_kept_once_per_request(nats_server: NatsInTest) -> None:
    await nats_server.provision()
    gateway = await nats_server.bus("gateway", "gateway-0")
    for body in (b"full", b""):
        gateway.publish(
            subjects.body_published("req-1"), BodyPublished(request_id="req-1", body=body)
        )
    await gateway.flush()
    async with History(nats_server.url, nats_server.key_file("history", "history")) as history:
        kept = [decode_stored(s).message async for s in history.read("INFLIGHT")]
    assert kept == [BodyPublished(request_id="req-1", body=b"")]


async def test_a_reply_address_on_an_event_gets_no_acknowledgement(
    nats_server: NatsInTest,
) -> None:
    """Else a publisher could make JetStream speak to any subject (``no_ack``)."""
    await nats_server.provision()
    client = await nats_server.client("worker", "decode-0")
    inbox = await client.subscribe("_INBOX_decode-0.acks")
    await client.publish("yard.evt.kv.pages_changed.decode-0", b"x", reply="_INBOX_decode-0.acks")
    await settled(client, "decode-0")
    async with History(nats_server.url, nats_server.key_file("history", "history")) as history:
        assert await history.last_seq("KV_EVENTS") == 1
    with pytest.raises(NatsError):
        await inbox.next_msg(timeout=0.1)


async def _ignore(_error: Exception) -> None:
    pass
