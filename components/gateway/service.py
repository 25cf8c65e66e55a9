"""The gateway's shell: subscribes, listens, drains."""

import asyncio
import contextlib
import secrets

from bus import discovery, subjects
from bus.subjects import ANY
from components.gateway.app import Front, version
from components.gateway.bus_calls import BusCalls
from components.gateway.bus_past import ClientsPast
from components.gateway.desk import Desk
from components.gateway.server import HttpServer
from components.gateway.settings import GatewaySettings
from components.host.host import Host
from schemas.body import FetchBody
from schemas.fleet import HeartbeatSent
from schemas.request import RequestDispatched, RequestQueued, RequestRefused


class Gateway:
    """One gateway process."""

    def __init__(self, host: Host, settings: GatewaySettings) -> None:
        secret = settings.tenant_secret
        self._host = host
        self._settings = settings
        self._desk = Desk(
            host,
            settings,
            secret.get_secret_value().encode() if secret else secrets.token_bytes(32),
        )
        self._calls = BusCalls(self._desk)
        self._past = ClientsPast(host)
        self._server = HttpServer(Front(self._desk), settings, host.tasks)
        self._ticks = 0

    async def start(self) -> None:
        bus, me, desk = self._host.bus, self._host.instance, self._desk
        _ = await bus.subscribe(subjects.request_queued(me), RequestQueued, desk.on_message)
        _ = await bus.subscribe(subjects.request_refused(me), RequestRefused, desk.on_message)
        _ = await bus.subscribe(subjects.request_dispatched(me), RequestDispatched, desk.on_message)
        _ = await bus.subscribe(subjects.fetch_body(me), FetchBody, desk.on_fetch_body)
        _ = await bus.subscribe_frames(subjects.frames(me, ANY), desk.on_frame)
        _ = await bus.subscribe(subjects.heartbeat_sent(ANY, ANY), HeartbeatSent, desk.on_heartbeat)
        bus.on_reconnect(desk.on_reconnect)
        await desk.tenants.start()
        await self._calls.start()
        await self._past.start()
        prefix = self._host.settings.subject_prefix
        about = discovery.Instance("gateway", me, version(), prefix, self._host.epoch)
        await bus.discoverable(about.subjects(bus.served))
        _ = self._host.tasks.every("gateway.tick", self._settings.tick_ms / 1000, self._tick)
        await self._server.start()

    async def drain(self, deadline_s: float) -> None:
        """/ready says 503 at once; what runs may end; at the deadline its clients are told."""
        self._desk.drain_soon()
        accept_s = min(self._settings.drain_accept_s, deadline_s)
        await asyncio.sleep(accept_s)
        self._desk.refuse_new()
        await self._calls.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s - accept_s):
                await self._desk.idle()
        self._desk.end_all("shutting_down", "the gateway's drain is over")

    async def stop(self) -> None:
        await self._server.stop()
        self._desk.pool.close()

    def heartbeat(self) -> dict[str, object]:
        return {
            "address": self._server.address,
            "running": len(self._desk.core.requests),
            "watermark": self._ticks,
        }

    def _tick(self) -> None:
        self._ticks += 1
        self._desk.on_tick()
