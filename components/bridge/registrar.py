"""Tells the registry of engines outside Switchyard. Opens nothing unless settings ask for it."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, assert_never

from bus import subjects
from bus.bus import Received, Subscription
from bus.subjects import ANY
from components.bridge.registrations import Outcome, Registrations
from components.bridge.settings import BridgeSettings
from components.host.host import Host
from schemas.codes import Role
from schemas.fleet import FleetExpired, FleetRegistered, HeartbeatSent

if TYPE_CHECKING:
    from components.bridge.pings import PingSocket

TICK_S: Final = 0.25


class Registrar:
    """A part of the bridge. ``stop`` also follows a failed start."""

    def __init__(self, host: Host, settings: BridgeSettings) -> None:
        self._host = host
        self._settings = settings
        self._core = Registrations(
            ttl_s=settings.ping_ttl_ms / 1000, engines_max=settings.registered_max
        )
        self._socket: PingSocket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._heartbeats: Subscription | None = None

    async def start(self) -> None:
        """Raises ``CannotStart`` when the port is taken."""
        named: list[tuple[Role, str]] = [("prefill", a) for a in self._settings.prefill_addrs]
        named += [("decode", a) for a in self._settings.decode_addrs]
        if not named and not self._settings.ping_port:
            return
        if self._settings.ping_port:
            self._open()
        self._heartbeats = await self._host.bus.subscribe(
            subjects.heartbeat_sent("registry", ANY), HeartbeatSent, self._on_heartbeat
        )
        self._perform(self._core.set_static(named, self._host.clock.now_s()))
        self._host.bus.on_reconnect(self._say_all)
        self._host.tasks.every("bridge.registrations", TICK_S, self._tick)

    async def stop(self) -> None:
        """Read no more. The engines are still there, so nothing is said to have expired."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        if self._socket is not None:
            self._socket.close()
        heartbeats, self._heartbeats = self._heartbeats, None
        if heartbeats is not None:
            await heartbeats.unsubscribe()

    def _open(self) -> None:
        # libzmq starts threads of its own: who wants no pings gets none.
        from components.bridge.pings import PingSocket  # noqa: PLC0415

        host, port = self._settings.ping_bind_address, self._settings.ping_port
        self._socket = PingSocket(host, port, self._on_ping)
        self._socket.open()
        self._reader = self._host.tasks.spawn("bridge.pings", self._socket.read())
        self._host.log.info("listening for pings", extra={"host": host, "port": port})

    def _on_ping(self, sender: bytes, frames: list[bytes]) -> None:
        if len(frames) != 1:
            self._core.totals["pings_total"] += 1
            self._core.refuse("frames")
            return
        self._perform(self._core.on_ping(sender, frames[0], self._host.clock.now_s()))

    def _on_heartbeat(self, received: Received[HeartbeatSent]) -> None:
        self._perform(self._core.on_registry(received.message))

    def _say_all(self) -> None:
        """What was said while the bus was away may not have arrived."""
        self._perform(self._core.say_all())

    def _tick(self) -> None:
        if self._host.bus.connected:
            # An expiry that nobody hears would leave the engine in the registry for ever.
            self._perform(self._core.on_tick(self._host.clock.now_s()))
        self._host.counters.update(self._core.totals)
        self._host.counters["registered_engines"] = len(self._core)

    def _perform(self, outcomes: list[Outcome]) -> None:
        bus, now = self._host.bus, {"at_ms": self._host.clock.wall_ms()}
        for outcome in outcomes:
            dated = outcome.model_copy(update=now)
            match dated:
                case FleetRegistered():
                    bus.publish(subjects.fleet_registered(dated.instance), dated)
                case FleetExpired():
                    bus.publish(subjects.fleet_expired(dated.instance), dated)
                case _:
                    assert_never(outcome)
