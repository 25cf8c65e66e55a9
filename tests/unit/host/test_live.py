"""A life of a component, on the memory bus."""

import asyncio
from collections.abc import Callable

import pytest

from bus import subjects
from bus.bus import Received
from bus.memory_bus import MemoryBus, MemoryHub
from components.host.errors import CannotStart
from components.host.host import Host
from components.host.process import live
from components.host.settings import HostSettings
from components.host.stopping import StopRequest
from schemas.fleet import HeartbeatSent, ShowComponent, ShowComponentReply
from schemas.request import RequestEventsBatched
from tests.support.host import HostInTest, testing_host

FAST = HostSettings(instance="gateway-0", heartbeat_ms=10, drain_s=0.05)


class Recorded:
    """A component that writes down what happens to it, and misbehaves on demand."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.calls: list[str] = []
        self.started = asyncio.Event()
        self.in_start: Callable[[], object] = lambda: None
        self.in_drain: Callable[[], object] = lambda: None
        self.in_stop: Callable[[], object] = lambda: None
        self.fields: dict[str, object] = {"model": "sim/words", "role": "decode"}

    async def start(self) -> None:
        self.calls.append("start")
        await _maybe(self.in_start())
        self.started.set()

    async def drain(self, deadline_s: float) -> None:
        self.calls.append(f"drain {deadline_s}")
        await _maybe(self.in_drain())

    async def stop(self) -> None:
        self.calls.append("stop")
        await _maybe(self.in_stop())

    def heartbeat(self) -> dict[str, object]:
        return self.fields


async def _maybe(result: object) -> None:
    if asyncio.iscoroutine(result):
        await result


def _raise(error: BaseException) -> object:
    raise error


class Life:
    """One life and a bystander who hears its heartbeats."""

    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.host: HostInTest = testing_host("gateway", hub=self.hub, settings=FAST)
        self.component = Recorded(self.host)
        self.stop = StopRequest()
        self.heard: list[HeartbeatSent] = []
        self.bystander = MemoryBus(self.hub, source="operator", epoch=1)
        self._changed = asyncio.Event()

    async def __aenter__(self):
        await self.bystander.connect()
        await self.bystander.subscribe(
            subjects.heartbeat_sent("gateway", "gateway-0"), HeartbeatSent, self._hear
        )
        self.task = asyncio.create_task(live(self.host, lambda host: self.component, self.stop))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop.ask("end of test")
        await self.task
        await self.bystander.close()

    def _hear(self, received: Received[HeartbeatSent]) -> None:
        self.heard.append(received.message)
        self._changed.set()

    async def until(self, state: str) -> HeartbeatSent:
        async with asyncio.timeout(5):
            while not self.heard or self.heard[-1].state != state:
                self._changed.clear()
                await self._changed.wait()
        return self.heard[-1]

    async def count(self, heartbeats: int) -> None:
        while len(self.heard) < heartbeats:
            self._changed.clear()
            await self._changed.wait()

    async def code(self) -> int:
        async with asyncio.timeout(5):
            return await asyncio.shield(self.task)


@pytest.fixture
async def life():
    return Life()


async def test_a_life_goes_through_its_states_and_ends_with_0(life: Life):
    async with life:
        await life.until("ready")
        life.stop.ask("SIGTERM")
        assert await life.code() == 0
        await life.bystander.flush()
    states = list(dict.fromkeys(h.state for h in life.heard))
    assert states == ["starting", "ready", "draining", "stopped"]
    assert life.heard[-1].state == "stopped"
    assert life.component.calls == ["start", "drain 0.05", "stop"]
    assert (life.heard[0].model, life.heard[0].role) == ("sim/words", "decode")
    assert life.heard[0].process_epoch == life.host.epoch


async def test_heartbeats_come_by_the_interval_and_only_while_there_is_a_server(life: Life):
    async with life:
        await life.until("ready")
        life.hub.partition("gateway-0")
        await asyncio.sleep(0.1)
        heard = len(life.heard)
        life.hub.heal("gateway-0")
        await life.bystander.flush()
        # None waited in a buffer: they would have come all at once.
        assert len(life.heard) <= heard + 2
        async with asyncio.timeout(5):
            await life.count(heard + 5)


async def test_a_component_that_is_not_well_says_degraded_while_it_is_ready(life: Life):
    life.component.fields = {"state": "degraded"}
    async with life:
        await life.until("degraded")
        life.stop.ask("SIGTERM")
        await life.code()
        await life.bystander.flush()
    assert life.heard[0].state == "starting"
    assert life.heard[-1].state == "stopped"


@pytest.mark.parametrize("name", ["gateway-0", subjects.EVERYONE])
async def test_a_component_can_be_asked_what_it_is_and_has_counted(life: Life, name: str):
    async with life:
        await life.until("ready")
        life.host.counters.add("late_tokens_total", 3)
        reply = await life.bystander.ask(
            subjects.show_component(name), ShowComponent(), ShowComponentReply, timeout_s=2
        )
    assert reply.heartbeat.instance == "gateway-0"
    assert reply.counters["late_tokens_total"] == 3
    assert reply.counters["bus_published_total"] > 0
    assert "bus connected" in reply.notes


async def test_a_stop_asked_for_before_the_loop_started_is_not_lost(life: Life):
    life.stop.ask("SIGTERM")
    async with life:
        assert await life.code() == 0
    assert life.component.calls == []


async def test_a_stop_during_the_start_ends_it_and_still_releases(life: Life):
    life.component.in_start = lambda: asyncio.sleep(60)
    async with life:
        await life.until("starting")
        life.stop.ask("SIGTERM")
        assert await life.code() == 0
    assert life.component.calls == ["start", "stop"]


async def test_a_fault_in_a_side_task_drains_and_ends_with_70(life: Life):
    async with life:
        await life.until("ready")
        _ = life.host.tasks.spawn("breaks", _breaks())
        assert await life.code() == 70
    assert life.component.calls == ["start", "drain 0.05", "stop"]
    assert life.host.counters["faults_total"] == 1


async def _breaks() -> None:
    raise ValueError("oh")


async def test_a_fault_in_a_handler_ends_with_70(life: Life):
    def wrong(received: Received[ShowComponent]) -> None:
        raise KeyError("x")

    async with life:
        await life.until("ready")
        await life.host.bus.subscribe(subjects.show_component("x"), ShowComponent, wrong)
        life.bystander.publish(subjects.show_component("x"), ShowComponent())
        assert await life.code() == 70


async def test_a_start_that_fails_is_a_fault_and_is_followed_by_stop(life: Life):
    life.component.in_start = lambda: _raise(KeyError("x"))
    async with life:
        assert await life.code() == 70
    assert life.component.calls == ["start", "stop"]


async def test_what_is_missing_outside_ends_with_69_and_is_no_fault(life: Life):
    life.component.in_start = lambda: _raise(CannotStart("port 80 is taken"))
    async with life:
        assert await life.code() == 69
    assert "faults_total" not in life.host.counters


async def test_no_server_ends_with_69(life: Life):
    life.hub.stop()
    host = testing_host("gateway", hub=life.hub, settings=FAST)
    assert await live(host, lambda host: life.component, StopRequest()) == 69
    assert life.component.calls == []


@pytest.mark.parametrize("step", ["in_drain", "in_stop"])
async def test_a_step_of_the_exit_that_fails_does_not_keep_the_next_from_its_turn(
    life: Life, step: str
):
    setattr(life.component, step, lambda: _raise(KeyError("x")))
    async with life:
        await life.until("ready")
        life.stop.ask("SIGTERM")
        assert await life.code() == 70
        await life.bystander.flush()
    assert life.component.calls == ["start", "drain 0.05", "stop"]
    assert life.heard[-1].state == "stopped"


async def test_a_drain_that_does_not_end_is_cut_off(life: Life, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("components.host.process.DRAIN_GRACE_S", 0.01)
    life.component.in_drain = lambda: asyncio.sleep(60)
    async with life:
        await life.until("ready")
        life.stop.ask("SIGTERM")
        assert await life.code() == 0
    assert life.component.calls == ["start", "drain 0.05", "stop"]


async def test_what_a_component_recorded_last_still_leaves(life: Life):
    batches: list[RequestEventsBatched] = []
    life.component.in_stop = lambda: life.host.recorder.record("r1", "cancelled", 1)
    async with life:
        await life.bystander.subscribe(
            subjects.request_events_batched("gateway-0"),
            RequestEventsBatched,
            lambda received: batches.append(received.message),
        )
        await life.until("ready")
        life.stop.ask("SIGTERM")
        await life.code()
        await life.bystander.flush()
    assert [e.step for b in batches for e in b.events] == ["cancelled"]
