"""Real DEALER sockets over loopback, as P2P engines have them; the bus is in memory."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import psutil
import pytest
import zmq
import zmq.asyncio

from bus import subjects
from bus.memory_bus import MemoryBus, MemoryHub
from bus.server import free_port
from components.bridge.service import BridgeService
from components.bridge.settings import BridgeSettings
from components.host.errors import CannotStart
from schemas.examples import example
from schemas.fleet import FleetExpired, FleetRegistered, HeartbeatSent
from tests.support.host import HostInTest, connected_host
from tests.support.nats import until


class Yard:
    def __init__(self, hub: MemoryHub, host: HostInTest, registry: MemoryBus, port: int) -> None:
        self.hub, self.host, self.registry, self.port = hub, host, registry, port
        self.said: list[FleetRegistered | FleetExpired] = []
        self.context = zmq.asyncio.Context()
        self.dealers: list[zmq.asyncio.Socket] = []

    def dealer(self, identity: str, port: int | None = None) -> zmq.asyncio.Socket:
        """An engine's socket; its identity is its ZMQ address, as P2P engines choose it."""
        dealer = self.context.socket(zmq.DEALER)
        self.dealers.append(dealer)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt_string(zmq.IDENTITY, identity)
        dealer.connect(f"tcp://127.0.0.1:{port or self.port}")
        return dealer

    def heartbeat(self, epoch: int) -> None:
        beat = example(
            HeartbeatSent, component="registry", instance="registry-0", process_epoch=epoch
        )
        self.registry.publish(subjects.heartbeat_sent("registry", "registry-0"), beat)

    def counted(self, name: str, least: int = 1) -> Callable[[], bool]:
        return lambda: self.host.counters.get(name, 0) >= least


def ping(n: int = 1, **fields: Any) -> bytes:
    given = {"type": "P", "http_address": f"10.0.0.{n}:80", "zmq_address": f"10.0.0.{n}:21001"}
    packed: bytes = msgpack.packb({**given, **fields})
    return packed


@asynccontextmanager
async def bridge(**settings: object) -> AsyncIterator[Yard]:
    hub, port = MemoryHub(), free_port()
    registry = MemoryBus(hub, source="registry-0", epoch=1)
    await registry.connect()
    chosen = {"bind_address": "127.0.0.1", "udp_port": 0, "ping_port": port, **settings}
    async with connected_host("bridge", hub=hub) as host:
        yard = Yard(hub, host, registry, port)
        await registry.subscribe(
            subjects.fleet_registered(subjects.ANY),
            FleetRegistered,
            lambda r: yard.said.append(r.message),
        )
        await registry.subscribe(
            subjects.fleet_expired(subjects.ANY),
            FleetExpired,
            lambda r: yard.said.append(r.message),
        )
        service = BridgeService(host, BridgeSettings.model_validate(chosen))
        try:
            await service.start()
            yield yard
        finally:
            yard.context.destroy(linger=0)
            await service.drain(1.0)
            await service.stop()
            await registry.close()


async def test_pings_register_engines_and_their_silence_ends_it():
    async with bridge(ping_ttl_ms=1000) as yard:
        first, second = yard.dealer("10.0.0.1:21001"), yard.dealer("10.0.0.2:21001")
        await first.send(ping(1))
        await second.send(ping(2, type="D"))
        await until(lambda: len(yard.said) == 2)
        assert {(s.instance, s.role) for s in yard.said} == {
            ("10.0.0.1:80", "prefill"),
            ("10.0.0.2:80", "decode"),
        }
        # Both fall silent: no message comes that could cause an expiry.
        await until(lambda: len(yard.said) == 4)
        expired = yard.said[2:]
        assert all(isinstance(e, FleetExpired) and e.silent_ms >= 1000 for e in expired)
        await until(lambda: yard.host.counters["registered_engines"] == 0)


async def test_nobody_is_answered():
    async with bridge() as yard:
        dealer = yard.dealer("10.0.0.1:21001")
        await dealer.send(ping())
        await until(lambda: len(yard.said) == 1)
        assert not await dealer.poll(200)


async def test_rubbish_stops_nobody_and_is_counted():
    async with bridge() as yard:
        bad, good = yard.dealer("bad"), yard.dealer("good")
        await bad.send(b"\xc1")
        await bad.send(b"")
        await bad.send_multipart([b"", ping()])
        await bad.send(ping(type="M"))
        await until(yard.counted("pings_invalid_total", 4))
        # libzmq cuts the link of whoever sends more than a ping can be.
        await bad.send(b"x" * 5000)
        await good.send(ping(2))
        await until(lambda: len(yard.said) == 1)
        await until(yard.counted("pings_total", 5))
        assert {name: count for name, count in yard.host.counters.items() if "invalid" in name} == {
            "pings_invalid_total": 4,
            "pings_invalid_not_msgpack_total": 2,
            "pings_invalid_frames_total": 1,
            "pings_invalid_unknown_type_total": 1,
        }


async def test_a_peer_that_speaks_no_zmq_disturbs_nobody():
    async with bridge() as yard:
        with socket.create_connection(("127.0.0.1", yard.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 10_000)
            await yard.dealer("good").send(ping())
            await until(lambda: len(yard.said) == 1)


async def test_a_flood_of_one_engine_is_cut_and_spares_the_others():
    async with bridge() as yard:
        flood, good = yard.dealer("flood"), yard.dealer("good")
        for _ in range(300):
            await flood.send(ping(1))
        await good.send(ping(2))
        await until(lambda: len(yard.said) == 2)
        await until(yard.counted("pings_total", 301))
        assert yard.host.counters["pings_rate_limited_total"] >= 290


async def test_an_engine_that_comes_back_under_its_name_is_heard():
    async with bridge() as yard:
        first = yard.dealer("10.0.0.1:21001")
        await first.send(ping(1))
        await until(lambda: len(yard.said) == 1)
        again = yard.dealer("10.0.0.1:21001")
        await again.send(ping(1, zmq_address="10.0.0.1:21009"))
        await until(lambda: len(yard.said) == 2)


async def test_a_registry_that_starts_anew_hears_of_every_engine():
    async with bridge(prefill_addrs=("10.0.0.9:80",)) as yard:
        await yard.dealer("a").send(ping(1))
        await until(lambda: len(yard.said) == 2)
        yard.heartbeat(epoch=7)
        await until(lambda: len(yard.said) == 4)
        yard.heartbeat(epoch=7)
        yard.heartbeat(epoch=8)
        await until(lambda: len(yard.said) == 6)
    assert len(yard.said) == 6


async def test_no_expiry_is_said_into_a_bus_that_is_away():
    async with bridge(ping_ttl_ms=1000) as yard:
        await yard.dealer("a").send(ping(1))
        await until(lambda: len(yard.said) == 1)
        yard.hub.partition("bridge-0")
        await asyncio.sleep(1.5)
        yard.hub.heal("bridge-0")
        await until(lambda: len(yard.said) == 3)
        assert [type(s) for s in yard.said] == [FleetRegistered, FleetRegistered, FleetExpired]


async def test_a_port_that_is_taken_is_told_by_its_number():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotStart, match=f"pings on tcp://127.0.0.1:{port}"):
            async with bridge(ping_port=port):
                pass


async def test_engines_are_heard_over_ipv6():
    async with bridge(ping_bind_address="::1") as yard:
        dealer = yard.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IPV6, 1)
        dealer.connect(f"tcp://[::1]:{yard.port}")
        await dealer.send(ping(1, http_address="fd00::7:80"))
        await until(lambda: len(yard.said) == 1)
        assert yard.said[0].instance == "[fd00::7]:80"


async def test_by_default_no_tcp_port_is_opened_and_no_heartbeat_read():
    before = {c.laddr for c in psutil.Process().net_connections("tcp")}
    async with bridge(ping_port=0) as yard:
        assert {c.laddr for c in psutil.Process().net_connections("tcp")} == before
        yard.heartbeat(epoch=7)
        await asyncio.sleep(0.05)
    assert yard.said == []
    assert "registered_engines" not in yard.host.counters
