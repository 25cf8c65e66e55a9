"""Long prompts and long answers on engines of their own: HTTP, all services, simulated engines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from bus import subjects
from bus.bus import Received
from bus.memory_bus import MemoryBus, MemoryHub
from bus.subjects import ANY
from components.gateway.service import Gateway
from components.gateway.settings import GatewaySettings
from components.host.component import Component
from components.host.heartbeat import Presence
from components.host.settings import HostSettings
from components.router.service import Router
from components.router.settings import RouterSettings
from components.scheduler.service import Scheduler
from components.scheduler.settings import SchedulerSettings
from components.worker.service import Worker
from components.worker.settings import WorkerSettings
from schemas.attempt import AttemptReported
from schemas.body import SamplingParameters
from schemas.handoff import OfferHandoff
from tests.integration.gateway.fleet import MODEL, WORD_IDS, story_of
from tests.support.host import HostInTest, connected_host
from tests.support.nats import until

LONG = (WORD_IDS * 900)[:900]
SHORT = (WORD_IDS * 40)[:40]
CHAT = [{"role": "user", "content": "hello there"}]
LIMIT = {"max_tokens": 24, "seed": 7, "ignore_eos": True}


@dataclass
class Yard:
    """All processes of a small yard, on one loop; ``http`` speaks to its gateway."""

    hosts: dict[str, HostInTest] = field(default_factory=dict)
    reports: list[AttemptReported] = field(default_factory=list)
    offers: list[OfferHandoff] = field(default_factory=list)
    http: httpx.AsyncClient = field(init=False)

    async def listen(self, bus: MemoryBus) -> None:
        def reported(received: Received[AttemptReported]) -> None:
            self.reports.append(received.message)

        def offered(received: Received[OfferHandoff]) -> None:
            self.offers.append(received.message)

        await bus.subscribe(subjects.attempt_reported(ANY, ANY), AttemptReported, reported)
        await bus.subscribe(subjects.offer_handoff(ANY), OfferHandoff, offered)

    async def complete(self, prompt: list[int], **more: Any) -> str:
        body = {"model": MODEL, "prompt": prompt, **LIMIT, **more}
        answer = await self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def served(self) -> list[tuple[str, str]]:
        """(worker, phase) of all that ended, in order."""
        return [(r.worker, r.phase) for r in self.reports if r.state == "ended"]

    def reasons(self) -> list[tuple[Any, Any]]:
        """(the pool a request belongs to, the role that it was given to)."""
        recorded = self.hosts["router-0"].recorded
        routed = [event.detail for event in recorded if event.step == "routed"]
        assert {detail["policy"] for detail in routed} == {"segregate"}
        return [(detail["pool"], detail["role"]) for detail in routed]


@asynccontextmanager
async def segregated(*workers: str) -> AsyncIterator[Yard]:
    """A yard that is ready; the role of a worker is in its name."""
    hub, yard = MemoryHub(), Yard()
    async with AsyncExitStack() as stack:

        async def host(component: str, name: str) -> HostInTest:
            settings = HostSettings(instance=name, heartbeat_ms=50)
            made = connected_host(component, name, hub=hub, settings=settings)
            yard.hosts[name] = await stack.enter_async_context(made)
            return yard.hosts[name]

        async def start(component: Component, on: HostInTest) -> None:
            stack.push_async_callback(component.stop)
            await component.start()
            presence = Presence(on)
            await presence.start(component)
            presence.enter("ready")

        outside = await host("operator", "outside")
        assert isinstance(outside.bus, MemoryBus)
        await yard.listen(outside.bus)
        for name in workers:
            role = name.split("-")[0]
            at = await host("worker", name)
            given = WorkerSettings.model_validate(
                {"role": role, "model": MODEL, "profile": "constant:ttft_ms=2,itl_ms=0.2"}
            )
            await start(Worker(at, given), at)
        at = await host("scheduler", "scheduler-0")
        await start(Scheduler(at, SchedulerSettings()), at)
        at = await host("router", "router-0")
        await start(Router(at, RouterSettings(policy="segregate", tick_ms=20)), at)
        at = await host("gateway", "gateway-0")
        gateway = Gateway(at, GatewaySettings(port=0, tick_ms=20))
        await start(gateway, at)
        url = "http://{}".format(gateway.heartbeat()["address"])
        client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=10.0)
        yard.http = await stack.enter_async_context(client)
        for _ in range(400):
            if (await yard.http.get("/ready")).status_code == 200:
                break
            await asyncio.sleep(0.01)
        yield yard


async def test_each_class_is_served_by_its_own_engines_and_no_kv_moves():
    sampling = SamplingParameters(max_tokens=24, seed=7, ignore_eos=True)
    async with segregated("prefill-0", "decode-0") as yard:
        assert await yard.complete(LONG) == story_of(None, sampling, ids=LONG)
        assert await yard.complete(SHORT) == story_of(None, sampling, ids=SHORT)
        chat = {"model": MODEL, "messages": CHAT, **LIMIT}
        whole = (await yard.http.post("/v1/chat/completions", json=chat)).json()
        assert whole["choices"][0]["message"]["content"] == story_of(CHAT, sampling)
        streamed = await yard.http.post("/v1/chat/completions", json={**chat, "stream": True})
        assert streamed.text.rstrip().endswith("data: [DONE]")
        await until(lambda: len(yard.served()) == 4, "all ends")
        assert yard.served() == [
            ("prefill-0", "aggregated"),
            *[("decode-0", "aggregated")] * 3,
        ]
        assert yard.reasons() == [("prefill", "prefill"), *[("decode", "decode")] * 3]
        assert yard.offers == []


async def test_a_pool_whose_engines_are_gone_is_stood_in_for():
    async with segregated("prefill-0", "decode-0") as yard:
        gone = yard.hosts["prefill-0"].bus
        assert isinstance(gone, MemoryBus)
        gone.cut_off = True
        expected = story_of(
            None, SamplingParameters(max_tokens=24, seed=7, ignore_eos=True), ids=LONG
        )
        assert await yard.complete(LONG) == expected
        await until(lambda: bool(yard.served()), "its end")
        assert yard.served()[-1] == ("decode-0", "aggregated")
        assert yard.reasons()[-1] == ("prefill", "decode")
