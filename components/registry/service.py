"""Hears the fleet, keeps the picture, tells FLEET what changed, answers ``ShowFleet``."""

from typing import TypeVar, assert_never

from bus import discovery, subjects
from bus.bus import Received, Subscription
from bus.nats_bus import NatsBus
from bus.records import Records
from bus.subjects import ANY
from components.domain.outcomes import Count
from components.host.host import Host
from components.host.version import version
from components.registry.access_service import AccessService
from components.registry.core import Outcome, RegistryCore
from components.registry.engine_service import EngineService
from components.registry.key_service import KeyService
from components.registry.node_service import NodeService
from components.registry.settings import RegistrySettings
from schemas.engine import EngineLoadReported, EngineStatesReceived
from schemas.fleet import (
    FleetExpired,
    FleetJoined,
    FleetLeft,
    FleetRegistered,
    HeartbeatSent,
    ShowFleet,
)

Event = TypeVar("Event", FleetJoined, FleetLeft)


class RegistryService:
    """The registry as a component."""

    def __init__(self, host: Host, settings: RegistrySettings) -> None:
        self._host = host
        self._settings = settings
        self._core = RegistryCore(
            silent_after_s=settings.silent_after_s,
            stale_after_s=settings.stale_after_s,
            purge_after_s=settings.purge_after_s,
            processes_max=settings.processes_max,
            engines_max=settings.engines_max,
            registered_max=settings.registered_max,
        )
        about = host.settings
        # The broker knows records by another connection: they are asked for, not heard.
        self._records = Records(about.nats_url, about.nats_key_file, source=host.instance)
        self._nodes = NodeService(host, settings, self._records)
        self._engines = EngineService(host, settings, self._records)
        self._access = AccessService(host, settings, self._records)
        self._keys = KeyService(host, settings, self._records)
        self._with_records = isinstance(host.bus, NatsBus)
        self._subscriptions: list[Subscription] = []
        self._cut_off = False

    async def start(self) -> None:
        bus = self._host.bus
        self._subscriptions = [
            await bus.subscribe(subjects.heartbeat_sent(ANY, ANY), HeartbeatSent, self._feed),
            await bus.subscribe(subjects.engine_load_reported(ANY), EngineLoadReported, self._feed),
            await bus.subscribe(
                subjects.engine_states_received(ANY), EngineStatesReceived, self._feed
            ),
            await bus.subscribe(
                subjects.fleet_registered(ANY), FleetRegistered, self._feed_registration
            ),
            await bus.subscribe(subjects.fleet_expired(ANY), FleetExpired, self._feed_registration),
            await bus.subscribe(subjects.show_fleet(), ShowFleet, self._show, queue="registry"),
        ]
        if self._with_records:
            await self._records.connect()
            await self._nodes.start()
            await self._engines.start()
            await self._access.start()
            await self._keys.start()
        prefix = self._host.settings.subject_prefix
        about = discovery.Instance(
            "registry", self._host.instance, version(), prefix, self._host.epoch
        )
        await bus.discoverable(about.subjects(bus.served))
        bus.on_reconnect(self._resume)
        self._host.tasks.every("registry.tick", self._settings.tick_ms / 1000, self._tick)

    async def drain(self, deadline_s: float) -> None:
        """What was heard last is written; nothing else is under way here."""
        if self._with_records:
            await self._engines.write()

    async def stop(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()
        if self._with_records:
            await self._nodes.stop()
            await self._engines.stop()
            await self._access.stop()
            await self._keys.stop()
            await self._records.close()

    def heartbeat(self) -> dict[str, object]:
        return {}

    def _feed(
        self,
        received: Received[HeartbeatSent]
        | Received[EngineLoadReported]
        | Received[EngineStatesReceived],
    ) -> None:
        message = received.message
        self._perform(self._core.on_message(message, self._host.clock.now_s()))
        match message:
            case HeartbeatSent():
                if self._core.lives(message.instance, message.process_epoch):
                    self._engines.on_heartbeat(message)
            case EngineLoadReported():
                self._engines.on_load(message)

    def _feed_registration(
        self, received: Received[FleetRegistered] | Received[FleetExpired]
    ) -> None:
        self._perform(self._core.on_registration(received.message, received.source, received.epoch))

    def _show(self, question: Received[ShowFleet]) -> None:
        self._host.bus.respond(question, self._core.show(self._host.clock.now_s()))

    def _tick(self) -> None:
        # While cut off, silence says nothing about the others.
        if not self._host.bus.connected:
            self._cut_off = True
            return
        if self._cut_off:
            self._resume()
        self._perform(self._core.on_tick(self._host.clock.now_s()))

    def _resume(self) -> None:
        self._cut_off = False
        self._core.on_resume(self._host.clock.now_s())
        self._nodes.resume()
        self._engines.resume()
        self._keys.resume()

    def _perform(self, outcomes: list[Outcome]) -> None:
        bus = self._host.bus
        for outcome in outcomes:
            match outcome:
                case FleetJoined():
                    bus.publish(subjects.fleet_joined(outcome.instance), self._dated(outcome))
                case FleetLeft():
                    self._engines.on_left(outcome)
                    bus.publish(subjects.fleet_left(outcome.instance), self._dated(outcome))
                case Count():
                    self._host.counters.add(outcome.name, outcome.by)
                case _:
                    assert_never(outcome)

    def _dated(self, event: Event) -> Event:
        return event.model_copy(update={"at_ms": self._host.clock.wall_ms()})
