"""Real datagrams over loopback; the bus is in memory."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from bus import subjects
from bus.memory_bus import MemoryBus, MemoryHub
from components.bridge import datagram
from components.bridge.service import BridgeService
from components.bridge.settings import BridgeSettings
from components.bridge.udp import kernel_dropped
from components.host.errors import CannotStart
from components.host.settings import load
from schemas.engine import EngineStateReceived, EngineStatesReceived
from tests.support.host import HostInTest, connected_host


class Yard:
    def __init__(self, host: HostInTest, service: BridgeService) -> None:
        self.host = host
        self.service = service
        self.messages: list[EngineStatesReceived] = []
        self.events: list[EngineStateReceived] = []
        self.changed = asyncio.Event()
        address = str(service.heartbeat()["address"])
        self.port = int(address.rpartition(":")[2])
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, data: bytes) -> None:
        self.sender.sendto(data, ("127.0.0.1", self.port))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def heard(self, message: EngineStatesReceived) -> None:
        self.messages.append(message)
        self.events += message.states
        self.changed.set()


@asynccontextmanager
async def bridge(**settings: object) -> AsyncIterator[Yard]:
    hub = MemoryHub()
    listener = MemoryBus(hub, source="registry-0", epoch=1)
    await listener.connect()
    chosen = BridgeSettings.model_validate({"bind_address": "127.0.0.1", "udp_port": 0, **settings})
    async with connected_host("bridge", hub=hub) as host:
        service = BridgeService(host, chosen)
        await service.start()
        yard = Yard(host, service)
        await listener.subscribe(
            subjects.engine_states_received(subjects.ANY),
            EngineStatesReceived,
            lambda received: yard.heard(received.message),
        )
        try:
            yield yard
        finally:
            yard.sender.close()
            await service.drain(1.0)
            await service.stop()
            await service.stop()
            await listener.close()


async def test_a_datagram_becomes_an_event_on_the_engine_s_subject():
    async with bridge() as yard:
        yard.send(datagram.test_datagram("http://10.0.0.7:8000", 1234567890))
        await yard.until(lambda: bool(yard.events))
        sender_port = yard.sender.getsockname()[1]
    assert yard.events[0].engine_id == "http://10.0.0.7:8000"
    assert yard.events[0].source_address == f"127.0.0.1:{sender_port}"
    assert yard.host.counters["valid_total"] == 1


async def test_rubbish_stops_nobody():
    async with bridge() as yard:
        for rubbish in (b"", b"{", b"\x00" * 4096, b"[" * 8000, b"x" * 60_000):
            yard.send(rubbish)
        yard.send(datagram.test_datagram("a", 1))
        await yard.until(lambda: bool(yard.events))
    assert yard.host.counters["invalid_total"] == 5
    assert yard.host.counters["invalid_too_long_total"] == 2


async def test_a_thousand_datagrams_at_once_all_arrive_in_order():
    async with bridge() as yard:
        for number in range(1000):
            yard.send(datagram.test_datagram(f"engine-{number % 10}", number))
        await yard.until(lambda: len(yard.events) == 1000)
    by_engine = [
        [e.timestamp_ms for e in yard.events if e.engine_id == f"engine-{n}"] for n in range(10)
    ]
    assert by_engine == [list(range(n, 1000, 10)) for n in range(10)]
    assert len(yard.messages) < 1000
    assert all(s.engine_id == m.engine_id for m in yard.messages for s in m.states)


async def test_one_turn_takes_so_many_and_the_next_one_goes_on():
    async with bridge(turn_max=5) as yard:
        for number in range(12):
            yard.send(datagram.test_datagram("a", number))
        await yard.until(lambda: len(yard.events) == 12)
    assert [len(m.states) for m in yard.messages] == [5, 5, 2]


async def test_a_port_that_is_taken_is_told_by_its_number():
    async with bridge() as yard:
        second = BridgeService(
            yard.host, BridgeSettings(bind_address="127.0.0.1", udp_port=yard.port)
        )
        with pytest.raises(CannotStart, match=f"UDP 127.0.0.1:{yard.port}"):
            await second.start()
        await second.stop()


async def test_what_the_kernel_drops_is_known():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(100):
                sender.sendto(b"x" * 1000, deaf.getsockname())
        assert 0 < kernel_dropped(deaf) < 100


def test_the_seed_s_variables_are_heard():
    environ = {
        "VLLM_STATE_GATEWAY_UDP_PORT": "9998",
        "VLLM_STATE_GATEWAY_BIND_ADDRESS": "127.0.0.1",
    }
    settings = load(BridgeSettings, "bridge", None, environ, {})
    assert (settings.udp_port, settings.bind_address) == (9998, "127.0.0.1")
    ours = environ | {"SWITCHYARD_BRIDGE_UDP_PORT": "9997"}
    assert load(BridgeSettings, "bridge", None, ours, {}).udp_port == 9997
