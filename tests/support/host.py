# ruff: noqa: PT028  (testing_host is no test, whatever its name)
"""A host for tests: in-memory bus, any clock, and everything that it was told kept for reading.

async with connected_host("router", hub=hub, clock=ManualClock()) as host:
    service = RouterService(host, RouterSettings())
    await service.start()
    ...
    assert host.steps("req-1") == ["routed", "dispatched"]
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bus.bus import Bus
from components.host.clock import Clock, SystemClock
from components.host.counters import Counters
from components.host.host import Host
from components.host.recorder import Recorder, Value
from components.host.settings import HostSettings
from components.host.tasks import Tasks
from schemas.codes import RequestStep
from schemas.request import RequestEvent

if TYPE_CHECKING:
    from bus.memory_bus import MemoryHub

EPOCH = 1_795_000_000_000


class CollectingRecorder(Recorder):
    """Sends like the real one and keeps every event; ``flush`` sends without waiting 10 ms."""

    def __init__(self, bus: Bus, clock: Clock, counters: Counters) -> None:
        super().__init__(bus, clock, counters)
        self.recorded: list[RequestEvent] = []

    def record(
        self,
        request_id: str,
        step: RequestStep,
        attempt: int,
        *,
        trace: str | None = None,
        detail: Mapping[str, Value] | None = None,
    ) -> RequestEvent:
        event = super().record(request_id, step, attempt, trace=trace, detail=detail)
        self.recorded.append(event)
        return event


@dataclass(slots=True)
class HostInTest(Host):
    """A ``Host`` that remembers its faults and the steps that were recorded."""

    faults: list[BaseException] = field(default_factory=list)
    recorded: list[RequestEvent] = field(default_factory=list)

    def steps(self, request_id: str) -> list[RequestStep]:
        """The steps recorded for one request, in order."""
        return [e.step for e in self.recorded if e.request_id == request_id]


def testing_host(
    component: str = "gateway",
    instance: str | None = None,
    *,
    hub: "MemoryHub | None" = None,
    bus: Bus | None = None,
    clock: Clock | None = None,
    epoch: int = EPOCH,
    settings: HostSettings | None = None,
) -> HostInTest:
    """A host on ``bus``, else on a new MemoryBus of ``hub``; connect it with ``host.bus.connect``.

    Needs a running loop once side tasks or records are made. ``connected_host`` does the rest too.
    """

    def fault(error: BaseException) -> None:
        host.fault(error)

    if bus is None:
        from bus.memory_bus import MemoryBus, MemoryHub  # noqa: PLC0415

        bus = MemoryBus(
            hub or MemoryHub(),
            source=instance or f"{component}-0",
            epoch=epoch,
            on_fault=fault,
        )
    clock = clock or SystemClock()
    counters = Counters()
    recorder = CollectingRecorder(bus, clock, counters)
    faults: list[BaseException] = []
    host = HostInTest(
        component=component,
        instance=bus.source,
        epoch=bus.epoch,
        bus=bus,
        clock=clock,
        tasks=Tasks(clock, fault),
        recorder=recorder,
        counters=counters,
        settings=settings or HostSettings(instance=bus.source),
        on_fault=faults.append,
    )
    host.faults = faults
    host.recorded = recorder.recorded
    return host


setattr(testing_host, "__test__", False)  # noqa: B010  (its name makes pytest take it for a test)


@asynccontextmanager
async def connected_host(
    component: str = "gateway",
    instance: str | None = None,
    *,
    hub: "MemoryHub | None" = None,
    bus: Bus | None = None,
    clock: Clock | None = None,
    epoch: int = EPOCH,
    settings: HostSettings | None = None,
) -> AsyncIterator[HostInTest]:
    """A connected ``testing_host``; at the end its tasks stop, and a fault fails the test."""
    host = testing_host(
        component, instance, hub=hub, bus=bus, clock=clock, epoch=epoch, settings=settings
    )
    await host.bus.connect()
    try:
        yield host
        if host.faults:
            raise host.faults[0]
    finally:
        await host.tasks.stop()
        host.recorder.flush()
        await host.bus.close()
