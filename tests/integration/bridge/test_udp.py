"""Real datagrams over loopback; the bus is in memory."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus import subjects
from bus.memory_bus import MemoryBus, MemoryHub
from components.bridge import datagram
from components.bridge.service import BridgeService
from components.bridge.settings import BridgeSettings
from components.bridge.udp import kernel_dropped
from components.bridge.windows import DUPLICATE_S
from components.domain.signed_frame import sign
from components.host.errors import CannotStart
from components.host.settings import load
from schemas.engine import EngineStateReceived, EngineStatesReceived
from tests.support.host import HostInTest, connected_host
from tests.support.nats import until


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
        "VLLM_STATE_GATEWAY_STALE_THRESHOLD": "1500",
        "VLLM_STATE_GATEWAY_NETWORK_MODE": "unicast",
        "VLLM_STATE_GATEWAY_ENABLE_LOG": "true",
        "VLLM_STATE_GATEWAY_LOG_FILE": "/tmp/states.jsonl",
    }
    settings = load(BridgeSettings, "bridge", None, environ, {})
    assert (settings.udp_port, settings.address) == (9998, "127.0.0.1")
    assert settings.stale_after_s == 1.5
    assert (settings.log_states, settings.log_file) == (True, "/tmp/states.jsonl")
    ours = environ | {"SWITCHYARD_BRIDGE_UDP_PORT": "9997"}
    assert load(BridgeSettings, "bridge", None, ours, {}).udp_port == 9997
    # By the seed's rule a broadcast gateway binds every address, whatever else it was told.
    listener = {"VLLM_UDP_LISTENER_PORT": "9996", "VLLM_UDP_LISTENER_LOG_FILE": "l.jsonl"}
    heard = load(BridgeSettings, "bridge", None, listener, {})
    assert (heard.udp_port, heard.log_file) == (9996, "l.jsonl")
    assert load(BridgeSettings, "bridge", None, listener | environ, {}).udp_port == 9998
    both = environ | {"VLLM_STATE_GATEWAY_NETWORK_MODE": "broadcast"}
    assert load(BridgeSettings, "bridge", None, both, {}).address == "0.0.0.0"


async def test_a_broadcast_is_told_from_a_datagram_to_us():
    async with bridge(network_mode="broadcast") as yard:
        yard.sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        yard.sender.sendto(datagram.test_datagram("a", 1), ("127.255.255.255", yard.port))
        yard.send(datagram.test_datagram("b", 1))
        await yard.until(lambda: len(yard.events) == 2)
    counters = yard.host.counters
    assert counters["broadcast_received_total"] == counters["unicast_received_total"] == 1


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_an_ipv4_broadcast_at_an_ipv6_wildcard_is_told_as_one():
    try:
        async with bridge(bind_address="::") as yard:
            yard.sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                yard.sender.sendto(datagram.test_datagram("a", 1), ("127.255.255.255", yard.port))
            except OSError as error:
                pytest.skip(f"loopback takes no broadcast here: {error}")
            yard.send(datagram.test_datagram("b", 1))
            await yard.until(lambda: len(yard.events) == 2)
    except CannotStart as error:
        pytest.skip(f"no IPv6 here: {error}")
    counters = yard.host.counters
    assert counters["broadcast_received_total"] == counters["unicast_received_total"] == 1
    assert {e.source_address.rpartition(":")[0] for e in yard.events} == {"127.0.0.1"}


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_an_ipv6_wildcard_takes_both_families():
    async with bridge(bind_address="::") as yard:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            try:
                sender.sendto(datagram.test_datagram("six", 1), ("::1", yard.port))
            except OSError:
                pytest.skip("no IPv6 loopback here")
        yard.send(datagram.test_datagram("four", 1))
        await yard.until(lambda: len(yard.events) == 2)
    addresses = {e.engine_id: e.source_address.rpartition(":")[0] for e in yard.events}
    # Whoever comes by IPv4 is known by that address, as networks and rates have it.
    assert addresses == {"six": "[::1]", "four": "127.0.0.1"}
    assert yard.host.counters["unicast_received_total"] == 2


async def test_the_seed_s_log_is_written(tmp_path: Path):
    file = tmp_path / "states.jsonl"
    async with bridge(log_states=True, log_file=str(file)) as yard:
        for number in range(3):
            yard.send(datagram.test_datagram("a", number))
        await yard.until(lambda: len(yard.events) == 3)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["state"]["timestamp_ms"] for line in lines] == [0, 1, 2]
    assert lines[0]["timestamp"] == yard.events[0].received_ms / 1000


# Keys.


def keys_file(folder: Path, mode: int = 0o600) -> str:
    file = folder / "udp.keys"
    file.write_text(f"k1 {'ab' * 32}\n")
    file.chmod(mode)
    return str(file)


async def test_a_bridge_that_asks_for_signatures_believes_nothing_else(tmp_path: Path):
    async with bridge(trust="required", keys_file=keys_file(tmp_path)) as yard:
        now_ms = time.time_ns() // 1_000_000
        plain = datagram.test_datagram("a", now_ms)
        signed = sign(plain, key_id="k1", key=b"\xab" * 32, epoch=now_ms, seq=1, sent_ms=now_ms)
        for data in (plain, signed, signed, signed.replace(b"k1", b"k2")):
            yard.send(data)
        later = sign(plain, key_id="k1", key=b"\xab" * 32, epoch=now_ms, seq=2, sent_ms=now_ms)
        yard.send(later)
        await yard.until(lambda: len(yard.events) == 2)
        await asyncio.sleep(DUPLICATE_S + 0.1)
        yard.send(signed)  # recorded, and played again
        await until(lambda: yard.host.counters["unbelieved_total"] == 3)
    assert [(e.trust, e.sender_seq) for e in yard.events] == [("signed", 1), ("signed", 2)]
    counters = yard.host.counters
    assert (counters["unbelieved_unsigned_total"], counters["duplicates_total"]) == (1, 1)
    assert counters["unbelieved_replayed_total"] == counters["unbelieved_unknown_key_total"] == 1


async def test_a_bridge_that_was_restarted_believes_no_recording_of_its_former_life(tmp_path: Path):
    keys = keys_file(tmp_path)
    now_ms = time.time_ns() // 1_000_000
    plain = datagram.test_datagram("a", now_ms)
    recorded = [
        sign(plain, key_id="k1", key=b"\xab" * 32, epoch=now_ms, seq=seq, sent_ms=now_ms - 5_000)
        for seq in (1, 2)
    ]
    async with bridge(trust="required", keys_file=keys) as yard:
        for data in recorded:
            yard.send(data)
        await until(lambda: yard.host.counters.get("unbelieved_before_start_total", 0) == 2)
        now_ms = time.time_ns() // 1_000_000
        alive = sign(plain, key_id="k1", key=b"\xab" * 32, epoch=now_ms, seq=3, sent_ms=now_ms)
        yard.send(alive)
        await yard.until(lambda: bool(yard.events))
    assert [e.sender_seq for e in yard.events] == [3]


async def test_keys_that_others_may_read_are_not_used(tmp_path: Path):
    with pytest.raises(CannotStart, match="chmod 600"):
        async with bridge(trust="mixed", keys_file=keys_file(tmp_path, 0o644)):
            pass
    with pytest.raises(CannotStart, match="cannot use the keys"):
        async with bridge(trust="mixed", keys_file=str(tmp_path / "none")):
            pass


def test_signatures_without_keys_are_refused_by_the_settings():
    with pytest.raises(ValueError, match="needs keys_file"):
        BridgeSettings(trust="required")
    with pytest.raises(ValueError, match="mixed_networks"):
        BridgeSettings(mixed_networks=("10.0.0.1/8",))


async def test_an_open_port_without_signatures_is_said_loudly():
    async with bridge(bind_address="0.0.0.0") as yard:
        assert yard.host.counters["unauthenticated"] == 1
    async with bridge() as yard:
        assert "unauthenticated" not in yard.host.counters
