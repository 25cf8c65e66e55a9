"""Registry and bridge as processes under their own permissions, JetStream behind them."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgpack
import zmq
import zmq.asyncio

from bus import subjects
from bus.errors import NoResponders
from bus.nats_bus import NatsBus
from bus.server import free_port
from components.bridge import datagram
from schemas.fleet import FleetEntry, ShowFleet, ShowFleetReply
from tests.support.nats import NatsInTest

ROOT = Path(__file__).parents[3]
ENGINE = "http://10.0.0.7:8000"


async def start(nats_server: NatsInTest, component: str, **settings: str) -> Process:
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")},
        "NATS_URL": nats_server.url,
        "SWITCHYARD_HOST_NATS_KEY_FILE": str(nats_server.key_file(component, f"{component}-0")),
        **settings,
    }
    code = f"import sys; from components.{component}.main import main; sys.exit(main({{}}))"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, env=environ, stderr=DEVNULL
    )


async def end(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    assert await process.wait() in {0, -signal.SIGKILL}


async def shown(
    operator: NatsBus, condition: Callable[[ShowFleetReply, dict[str, FleetEntry]], bool]
) -> ShowFleetReply:
    """The registry's picture, once ``condition`` holds for it."""
    async with asyncio.timeout(15):
        while True:
            try:
                reply = await operator.ask(
                    subjects.show_fleet(), ShowFleet(), ShowFleetReply, timeout_s=2
                )
            except NoResponders:  # not started yet
                await asyncio.sleep(0.02)
                continue
            if condition(reply, {p.heartbeat.instance: p for p in reply.processes}):
                return reply
            await asyncio.sleep(0.02)


async def test_a_datagram_shows_up_in_the_fleet_s_picture_and_in_engine_state(
    nats_server: NatsInTest, nats_bus: Callable[..., Awaitable[NatsBus]]
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    async with AsyncExitStack() as stack:
        bridge = await start(
            nats_server,
            "bridge",
            SWITCHYARD_BRIDGE_BIND_ADDRESS="127.0.0.1",
            SWITCHYARD_BRIDGE_UDP_PORT="0",
        )
        stack.push_async_callback(end, bridge)
        registry = await start(nats_server, "registry")
        stack.push_async_callback(end, registry)
        picture = await shown(
            operator,
            lambda _, there: "bridge-0" in there and there["bridge-0"].heartbeat.state == "ready",
        )
        address = next(p for p in picture.processes if p.heartbeat.component == "bridge")
        port = int(str(address.heartbeat.address).rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram.test_datagram(ENGINE, 1234567890), ("127.0.0.1", port))
        picture = await shown(operator, lambda reply, _: bool(reply.engines))
        (engine,) = picture.engines
        assert engine.engine == ENGINE
        assert engine.state is not None
        assert engine.state.timestamp_ms == 1234567890
        assert (engine.stale, engine.load) == (False, None)

        bridge.kill()
        picture = await shown(operator, lambda _, there: there["bridge-0"].lost)
    assert await kept(nats_server, "ENGINE_STATE") == 1
    # Two joins and one loss; the registry itself is no longer there to tell of its own leaving.
    assert await kept(nats_server, "FLEET") == 3


async def test_engines_that_ping_or_stand_in_settings_are_shown_and_told_to_a_new_registry(
    nats_server: NatsInTest, nats_bus: Callable[..., Awaitable[NatsBus]]
):
    await nats_server.provision()
    operator = await nats_bus("operator", "operator")
    port = free_port()
    ping = {"type": "D", "http_address": "10.0.0.5:20005", "zmq_address": "10.0.0.5:22001"}
    async with AsyncExitStack() as stack:
        first = await start(nats_server, "registry")
        stack.push_async_callback(end, first)
        bridge = await start(
            nats_server,
            "bridge",
            SWITCHYARD_BRIDGE_UDP_PORT="0",
            SWITCHYARD_BRIDGE_BIND_ADDRESS="127.0.0.1",
            SWITCHYARD_BRIDGE_PING_PORT=str(port),
            SWITCHYARD_BRIDGE_PING_TTL_MS="1500",
            PREFILL_ADDRS="10.0.0.4:20003",
        )
        stack.push_async_callback(end, bridge)
        context = zmq.asyncio.Context()
        stack.callback(context.destroy, linger=0)
        dealer = context.socket(zmq.DEALER)
        dealer.connect(f"tcp://127.0.0.1:{port}")

        def all_there(reply: ShowFleetReply, _: dict[str, FleetEntry]) -> bool:
            return len(reply.registered) == 2

        async def keep_pinging() -> None:
            while True:
                await dealer.send(msgpack.packb(ping))
                await asyncio.sleep(0.3)

        pinging = asyncio.create_task(keep_pinging())
        stack.callback(pinging.cancel)
        picture = await shown(operator, all_there)
        assert [(r.instance, r.role, r.kv_address, r.by) for r in picture.registered] == [
            ("10.0.0.4:20003", "prefill", "", "static"),
            ("10.0.0.5:20005", "decode", "10.0.0.5:22001", "ping"),
        ]
        first.kill()
        await first.wait()
        stack.push_async_callback(end, await start(nats_server, "registry"))
        again = (await shown(operator, all_there)).registered
        # Said anew, and so at another time.
        assert [r.model_copy(update={"at_ms": 0}) for r in again] == [
            r.model_copy(update={"at_ms": 0}) for r in picture.registered
        ]
        # Nobody pings any more.
        pinging.cancel()
        picture = await shown(operator, lambda reply, _: len(reply.registered) == 1)
        assert picture.registered[0].by == "static"


async def kept(nats_server: NatsInTest, stream: str) -> int:
    """How many messages the stream holds."""
    client = await nats_server.client("provisioner", "provisioner")
    answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
    count: int = json.loads(answer.data)["state"]["messages"]
    return count
