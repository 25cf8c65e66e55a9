"""A registry in the test's own process on a real server, and engines that it hears."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from bus import subjects
from bus.bus import Received
from bus.errors import NotConnected
from bus.nats_bus import NatsBus
from components.host.settings import HostSettings
from components.registry.service import RegistryService
from components.registry.settings import RegistrySettings
from schemas.engine import EngineLoadReported
from schemas.engines import DescribeEngine, DescribeEngineReply, EngineAbout
from schemas.examples import example
from schemas.fleet import HeartbeatSent
from schemas.message import Message
from tests.support.host import testing_host
from tests.support.nats import NatsInTest, until

MakeBus = Callable[..., Awaitable[NatsBus]]
ABOUT = EngineAbout(kind="sim", version="1.2", engine_args={"profile": "fast"})
BEAT_S = 0.1


@asynccontextmanager
async def registry(
    server: NatsInTest,
    nats_bus: MakeBus,
    name: str = "registry-0",
    *,
    loads: bool = True,
    **settings: Any,
) -> AsyncIterator[RegistryService]:
    """One that has read its records; with ``loads`` False one that cannot yet."""
    bus = await nats_bus("registry", name)
    about = HostSettings(
        instance=name, nats_url=server.url, nats_key_file=server.key_file("registry", name)
    )
    host = testing_host("registry", bus=bus, settings=about)
    service = RegistryService(host, RegistrySettings.model_validate(settings))
    await service.start()
    try:
        if loads:
            await until(lambda: service._nodes._records.loaded, "the nodes are read")
            await until(lambda: service._engines._records.loaded, "the engines are read")
            await until(lambda: service._keys._records.loaded, "the keys are read")
            if settings.get("access_dir"):
                await until(lambda: service._access._loaded, "the accounts are read")
        yield service
        await service.drain(5.0)
    finally:
        await service.stop()
        await host.tasks.stop()
        await bus.close()
    assert host.faults == []


async def ask(bus: NatsBus, question: Any, reply: Any) -> Any:
    kind: type[Message] = type(question)
    subject = subjects.function_of(kind)()
    return await bus.ask(subject, question, reply, timeout_s=10)


class EngineInTest:
    """A worker as the registry sees it: heartbeats, and an answer to what it is."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self.name = bus.source
        self.asked = 0
        self.fields: dict[str, Any] = {"state": "ready"}

    async def live(self) -> None:
        subject = subjects.describe_engine(self.name)
        await self._bus.subscribe(subject, DescribeEngine, self._describe)
        while True:
            self.say()
            await asyncio.sleep(BEAT_S)

    def say(self, **fields: Any) -> None:
        """One heartbeat."""
        known = {"instance": self.name, "process_epoch": self._bus.epoch}
        beat = example(HeartbeatSent, **{**known, **self.fields, **fields})
        self._bus.publish(subjects.heartbeat_sent("worker", self.name), beat)

    def take_work(self, *, accepting: bool) -> None:
        known = {"engine": self.name, "engine_epoch": self._bus.epoch}
        load = example(EngineLoadReported, **known, accepting=accepting)
        self._bus.publish(subjects.engine_load_reported(self.name), load)

    def _describe(self, question: Received[DescribeEngine]) -> None:
        self.asked += 1
        self._bus.respond(question, DescribeEngineReply(about=ABOUT))


@asynccontextmanager
async def engine(nats_bus: MakeBus, name: str) -> AsyncIterator[EngineInTest]:
    """Lives until the block ends, and then is silent without a goodbye."""
    bus = await nats_bus("worker", name)
    found = EngineInTest(bus)
    living = asyncio.create_task(found.live())
    try:
        yield found
    finally:
        living.cancel()
        with suppress(asyncio.CancelledError, NotConnected):
            await living
        await bus.close()
