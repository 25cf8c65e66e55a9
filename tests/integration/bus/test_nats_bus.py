"""What only a real server can show of the bus on NATS."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus import keys, subjects
from bus import nats_bus as nats_bus_module
from bus.endpoint import Outbox
from bus.errors import MessageTooLarge, NotAllowed, NotConnected
from bus.nats_bus import NatsBus
from bus.server import NatsServer, free_port
from bus.server_config import ServerLimits
from bus.subjects import ANY
from schemas.examples import CARD, example
from schemas.fleet import HeartbeatSent
from schemas.request import CancelRequest, RequestQueued, ScheduleRequest
from tests.support.nats import KeyRing, NatsInTest, until

MakeBus = Callable[..., Awaitable[NatsBus]]
CANCEL = subjects.cancel_request("scheduler-0")


async def test_a_frozen_server_is_noticed_within_seconds_and_forgiven(
    nats_server: NatsInTest, nats_bus: MakeBus
) -> None:
    """Ping 1 s x 2, and the message to oneself: SIGSTOP shows after 3 s, not after minutes."""
    gateway = await nats_bus("gateway", "gateway-0")
    scheduler = await nats_bus("scheduler", "scheduler-0")
    got: list[str] = []
    await scheduler.subscribe(CANCEL, CancelRequest, lambda r: got.append(r.message.request_id))
    await nats_server.freeze()
    frozen_s = time.monotonic()
    await until(lambda: not gateway.connected, "noticed")
    assert 1.5 < time.monotonic() - frozen_s < 4.5
    await until(lambda: not (gateway._linked or scheduler._linked), "the pings say so too")
    assert time.monotonic() - frozen_s < 4.5
    await nats_server.thaw()
    await until(lambda: gateway.connected and scheduler.connected, "back")
    assert gateway.counters["reconnects_total"] == 1
    gateway.publish(CANCEL, CancelRequest(request_id="after"))
    await until(lambda: got[-1:] == ["after"])


async def test_a_dead_server_is_noticed_at_once(nats_server: NatsInTest, nats_bus: MakeBus) -> None:
    gateway = await nats_bus("gateway", "gateway-0")
    await nats_server.kill()
    await until(lambda: not gateway.connected, deadline_s=0.5)


async def test_it_reconnects_again_and_again(nats_server: NatsInTest, nats_bus: MakeBus) -> None:
    gateway = await nats_bus("gateway", "gateway-0")
    for times in (1, 2, 3):
        await nats_server.kill()
        await until(lambda: not gateway.connected)
        await nats_server.start()
        await until(lambda times=times: gateway.counters["reconnects_total"] == times)  # type: ignore[misc]
        await until(lambda: gateway.connected)
    await gateway.flush()


class Proxy:
    """Between a bus and its server: passes everything on, and says what a test has it say."""

    def __init__(self, target: str) -> None:
        self._target = target.removeprefix("nats://").split(":")
        self.clients: list[asyncio.StreamWriter] = []
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    def say(self, line: bytes) -> None:
        for client in self.clients:
            client.write(line + b"\r\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.append(writer)
        try:
            there, to_there = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, to_there), _pass_on(there, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def test_when_the_client_gives_up_another_takes_its_place(
    nats_server: NatsInTest, nats_bus: MakeBus
) -> None:
    """Most errors of a server make nats-py close for ever; the bus comes back with a new client."""
    gateway = await nats_bus("gateway", "gateway-0")
    async with Proxy(nats_server.url).running() as proxy:
        scheduler = NatsBus(
            proxy.url,
            source="scheduler-0",
            epoch=1,
            key_file=nats_server.key_file("scheduler", "scheduler-0"),
        )
        await scheduler.connect()
        got: list[str] = []
        returns: list[None] = []
        keep = await scheduler.subscribe(
            CANCEL, CancelRequest, lambda r: got.append(r.message.request_id)
        )
        scheduler.on_reconnect(lambda: returns.append(None))
        proxy.say(b"-ERR 'Maximum Connections Exceeded'")
        await nats_server.kill()  # so that the first new clients find nobody
        await until(lambda: len(proxy.clients) >= 4, "several attempts")
        await nats_server.start()
        await until(lambda: bool(returns), "let in again")
        await until(lambda: scheduler.connected)
        gateway.publish(CANCEL, CancelRequest(request_id="again"))
        await until(lambda: got == ["again"])
        await keep.unsubscribe()
        await scheduler.close()
    assert len(returns) == 1
    assert got == ["again"]


async def test_a_key_that_was_revoked_is_let_in_again_when_it_is_back(
    nats_server: NatsInTest, nats_bus: MakeBus, nats_keys: KeyRing
) -> None:
    scheduler = await nats_bus("scheduler", "scheduler-0")
    everyone = tuple(nats_keys.users.values())
    nats_server.server.set_users(tuple(u for u in everyone if u[1] != "scheduler-0"))
    await until(lambda: not scheduler.connected, "thrown out")
    nats_server.server.set_users(everyone)
    await until(lambda: scheduler.connected, "let in again")


async def answer_like_a_server_that_delivers_nothing(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(b'INFO {"server_id":"x","max_payload":1048576,"headers":true}\r\n')
    while line := await reader.readline():
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")
    writer.close()


async def test_a_server_that_delivers_nothing_counts_as_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pongs come in time; only the message to oneself tells."""
    monkeypatch.setattr(nats_bus_module, "CLOSE_TIMEOUT_S", 0.1)
    real = NatsServer(tmp_path)
    bus = NatsBus(await real.start(), source="gateway-0", epoch=1)
    await bus.connect()
    assert bus.connected
    await real.kill()
    fake = await asyncio.start_server(
        answer_like_a_server_that_delivers_nothing, "127.0.0.1", real.port
    )
    try:
        await until(lambda: bus.counters["reconnects_total"] == 1, "nats-py is content")
        assert bus._linked
        assert not bus.connected
        with pytest.raises(NotConnected):
            await bus.flush(0.05)
        newcomer = NatsBus(real.url, source="g", epoch=1, connect_timeout_s=0.3)
        with pytest.raises(NotConnected):
            await newcomer.connect()
    finally:
        fake.close()
        await bus.close()


async def test_what_the_permissions_forbid_is_told_or_counted(nats_bus: MakeBus) -> None:
    gateway = await nats_bus("gateway", "gateway-0")
    with pytest.raises(NotAllowed, match="gateway-0 may not subscribe"):
        await gateway.subscribe(CANCEL, CancelRequest, lambda _r: None)
    await gateway.subscribe(subjects.request_queued("gateway-0"), RequestQueued, lambda _r: None)
    gateway.publish(subjects.request_queued("gateway-0"), example(RequestQueued))
    await gateway.flush()
    assert gateway.counters["not_allowed_total"] == 2
    assert gateway.connected


async def test_without_a_server_connecting_fails_in_time() -> None:
    bus = NatsBus(
        f"nats://127.0.0.1:{free_port()}", source="gateway-0", epoch=1, connect_timeout_s=0.3
    )
    started_s = time.monotonic()
    with pytest.raises(NotConnected, match=r"within 0\.3 s"):
        await bus.connect()
    assert time.monotonic() - started_s < 2
    await bus.close()


async def test_a_key_that_the_server_does_not_know_is_refused(
    nats_server: NatsInTest, tmp_path: Path
) -> None:
    keys.create_or_load(tmp_path / "strange.nk")
    for key_file in (tmp_path / "strange.nk", None):
        bus = NatsBus(
            nats_server.url,
            source="gateway-0",
            epoch=1,
            key_file=key_file,
            connect_timeout_s=0.4,
        )
        with pytest.raises(NotConnected, match="Authorization Violation"):
            await bus.connect()


async def test_a_bad_key_file_or_address_is_told_as_such(
    nats_server: NatsInTest, tmp_path: Path
) -> None:
    bus = NatsBus(nats_server.url, source="g", epoch=1, key_file=tmp_path / "nothing.nk")
    with pytest.raises(FileNotFoundError):
        await bus.connect()
    await bus.close()
    for url in ("", "127.0.0.1:4222", "http://127.0.0.1:4222", "nats://"):
        with pytest.raises(ValueError, match="no address"):
            NatsBus(url, source="g", epoch=1)


async def test_any_server_of_a_list_will_do(nats_server: NatsInTest, nats_bus: MakeBus) -> None:
    urls = f"nats://127.0.0.1:{free_port()}, {nats_server.url}"
    bus = NatsBus(
        urls,
        source="gateway-0",
        epoch=1,
        key_file=nats_server.key_file("gateway", "gateway-0"),
    )
    await bus.connect()
    assert bus.connected
    await bus.close()


async def test_the_payload_limit_is_the_servers(tmp_path: Path) -> None:
    limits = ServerLimits(payload_bytes_max=64 * 1024)
    small = NatsServer(tmp_path, limits=limits)
    bus = NatsBus(await small.start(), source="gateway-0", epoch=1)
    try:
        await bus.connect()
        with pytest.raises(MessageTooLarge, match="65536 allowed"):
            bus.publish(CANCEL, ScheduleRequest(card=CARD, body=bytes(64 * 1024)))
        await bus.close()
    finally:
        await small.kill()


async def test_a_prefix_separates_two_yards_on_one_server(tmp_path: Path) -> None:
    shared = NatsServer(tmp_path)
    url = await shared.start()
    buses = [
        NatsBus(url, source=name, epoch=1, prefix=prefix)
        for prefix in ("yard", "depot.two")
        for name in ("gateway-0", "scheduler-0")
    ]
    got: list[Any] = []
    try:
        for bus in buses:
            await bus.connect()
            if bus.source == "scheduler-0":
                await bus.subscribe(CANCEL, CancelRequest, got.append)
        buses[2].publish(CANCEL, example(CancelRequest))
        await until(lambda: bool(got))
        await buses[2].flush()
        await buses[1].flush()
        assert [r.subject for r in got] == [CANCEL]
    finally:
        for bus in buses:
            await bus.close()
        await shared.kill()


async def test_a_reader_that_stands_still_loses_nothing_within_the_server_buffer(
    nats_bus: MakeBus,
) -> None:
    """8 MB while the reader's loop is busy: the socket holds it back, order and count stay."""
    gateway = await nats_bus("gateway", "gateway-0")
    scheduler = await nats_bus("scheduler", "scheduler-0")
    seqs: list[int] = []

    def slow(received: Any) -> None:
        if not seqs:
            time.sleep(0.2)
        seqs.append(received.seq)

    await scheduler.subscribe(subjects.schedule_request("scheduler-0"), ScheduleRequest, slow)
    for _ in range(1000):
        gateway.publish(
            subjects.schedule_request("scheduler-0"), ScheduleRequest(card=CARD, body=bytes(8000))
        )
    await until(lambda: len(seqs) == 1000)
    assert seqs == list(range(1, 1001))
    assert gateway.counters["dropped_total"] == 0


async def test_the_buffer_is_bounded_when_the_server_does_not_read(
    nats_server: NatsInTest, nats_bus: MakeBus
) -> None:
    """A frozen server looks connected for 3 s; what it does not take must not pile up."""
    gateway = await nats_bus(
        "gateway", "gateway-0", outbox=Outbox(messages_max=1000, bytes_max=1024 * 1024)
    )
    await nats_server.freeze()
    for _ in range(400):
        gateway.publish_frame(CANCEL, bytes(64 * 1024))
        await asyncio.sleep(0)
    assert gateway.counters["dropped_total"] > 100
    await nats_server.thaw()
    await gateway.flush()


async def test_an_instance_with_a_difficult_name_works_like_any_other(
    nats_server: NatsInTest, nats_bus: MakeBus
) -> None:
    name = "http://10.0.0.7:8000/ä"
    worker = await nats_server.bus("worker", name)
    registry = await nats_bus("registry", "registry-0")
    got: list[str] = []
    await registry.subscribe(
        subjects.heartbeat_sent(ANY, ANY), HeartbeatSent, lambda r: got.append(r.source)
    )
    worker.publish(subjects.heartbeat_sent("worker", name), example(HeartbeatSent))
    await until(lambda: got == [name])
