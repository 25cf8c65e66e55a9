from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from bus import subjects
from bus.memory_bus import MemoryBus, MemoryHub
from components.host.clock import ManualClock
from components.registry.service import RegistryService
from components.registry.settings import RegistrySettings
from schemas.engine import EngineLoadReported, EngineStatesReceived
from schemas.examples import example
from schemas.fleet import (
    FleetExpired,
    FleetJoined,
    FleetLeft,
    FleetRegistered,
    HeartbeatSent,
    ShowFleet,
    ShowFleetReply,
)
from tests.support.host import HostInTest, connected_host


@dataclass
class Yard:
    hub: MemoryHub
    host: HostInTest
    clock: ManualClock
    other: MemoryBus
    told: list[FleetJoined | FleetLeft] = field(default_factory=list)

    def heartbeat(self, **changes: object) -> None:
        heartbeat = example(HeartbeatSent, **changes)
        subject = subjects.heartbeat_sent(heartbeat.component, heartbeat.instance)
        self.other.publish(subject, heartbeat)

    async def show(self) -> ShowFleetReply:
        return await self.other.ask(subjects.show_fleet(), ShowFleet(), ShowFleetReply, timeout_s=2)


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    hub, clock = MemoryHub(), ManualClock()
    other = MemoryBus(hub, source="decode-0", epoch=1)
    await other.connect()
    async with connected_host("registry", hub=hub, clock=clock) as host:
        service = RegistryService(host, RegistrySettings())
        await service.start()
        yard = Yard(hub, host, clock, other)
        await other.subscribe(
            subjects.fleet_joined(subjects.ANY), FleetJoined, lambda r: yard.told.append(r.message)
        )
        await other.subscribe(
            subjects.fleet_left(subjects.ANY), FleetLeft, lambda r: yard.told.append(r.message)
        )
        yield yard
        await service.drain(1.0)
        await service.stop()
        await service.stop()
    await other.close()


async def test_joins_and_losses_are_told_to_the_fleet_stream(yard: Yard):
    yard.heartbeat()
    await yard.other.flush()
    await yard.clock.run_for(2.5)
    await yard.host.bus.flush()
    assert [type(m) for m in yard.told] == [FleetJoined, FleetLeft]


async def test_the_fleet_can_be_asked_for(yard: Yard):
    yard.heartbeat()
    load = example(EngineLoadReported)
    yard.other.publish(subjects.engine_load_reported(load.engine), load)
    state = example(EngineStatesReceived)
    yard.other.publish(subjects.engine_states_received(state.engine_id), state)
    await yard.other.flush()
    yard.clock.advance(1.0)
    reply = await yard.show()
    assert [(p.heartbeat.instance, p.silent_ms) for p in reply.processes] == [("decode-0", 1000)]
    assert [(e.engine, e.load, e.state) for e in reply.engines] == [
        (load.engine, load, None),
        (state.engine_id, None, state.states[-1]),
    ]


async def test_a_bus_that_was_deaf_without_reconnecting_is_not_taken_for_it_either(yard: Yard):
    yard.heartbeat()
    await yard.other.flush()
    member = yard.host.bus
    assert isinstance(member, MemoryBus)
    member.cut_off = True
    await yard.clock.run_for(30.0)
    member.cut_off = False
    await yard.clock.run_for(1.0)
    await yard.host.bus.flush()
    assert [type(m) for m in yard.told] == [FleetJoined]


async def test_an_absence_of_the_bus_is_not_taken_for_the_death_of_all(yard: Yard):
    yard.heartbeat()
    await yard.other.flush()
    yard.hub.partition("registry-0")
    await yard.clock.run_for(30.0)
    yard.hub.heal("registry-0")
    await yard.clock.run_for(1.0)
    await yard.host.bus.flush()
    assert [type(m) for m in yard.told] == [FleetJoined]
    assert not (await yard.show()).processes[0].lost


async def test_engines_elsewhere_are_kept_as_a_bridge_tells_of_them(yard: Yard):
    engine = example(FleetRegistered)
    yard.other.publish(subjects.fleet_registered(engine.instance), engine)
    await yard.other.flush()
    assert (await yard.show()).registered == (engine,)
    yard.other.publish(subjects.fleet_expired(engine.instance), example(FleetExpired))
    await yard.other.flush()
    assert (await yard.show()).registered == ()
