"""A store that answers and takes no more: said so, and no reason to stop with what it does take."""

from collections.abc import Iterable
from typing import cast

import pytest

from bus import subjects
from bus.errors import RecordRefused
from bus.memory_bus import MemoryHub
from bus.records import Record, Records
from components.host.clock import ManualClock
from components.registry.engine_service import EngineService
from components.registry.key_service import KeyService
from components.registry.node_service import NodeService
from components.registry.settings import RegistrySettings
from schemas.examples import example
from schemas.fleet import HeartbeatSent
from schemas.keys import MakeKey, MakeKeyReply
from schemas.message import Message
from schemas.nodes import Caller, RegisterNode, RegisterNodeReply
from tests.support.host import connected_host

WHY = "it is not taken: maximum bytes exceeded: remove records"


class Choosy:
    """As ``bus.records.Records``; takes what has no such name."""

    def __init__(self, refused: Iterable[str]) -> None:
        self.refused = set(refused)
        self.taken: list[str] = []

    async def all(self, bucket: str) -> list[Record]:
        return []

    async def get(self, bucket: str, name: str) -> Record | None:
        return None

    async def put(self, bucket: str, name: str, value: bytes, *, revision: int) -> int:
        if name in self.refused:
            raise RecordRefused(WHY)
        self.taken.append(name)
        return revision + 1


KEY = MakeKey(key_id="0" * 12, digest=bytes(32), tenant="acme")
NODE = RegisterNode(caller=Caller(name="root", roles=("admin",)), node_id="n1")


@pytest.mark.parametrize(
    ("service", "question", "reply"),
    [(KeyService, KEY, MakeKeyReply), (NodeService, NODE, RegisterNodeReply)],
)
async def test_whoever_asked_for_it_hears_why_and_not_to_try_again(
    service: type[KeyService | NodeService],
    question: Message,
    reply: type[MakeKeyReply | RegisterNodeReply],
):
    hub = MemoryHub()
    async with (
        connected_host("registry", hub=hub, clock=ManualClock()) as host,
        connected_host("operator", hub=hub) as client,
    ):
        part = service(host, RegistrySettings(), cast("Records", Choosy(["0" * 12, "n1"])))
        await part.start()
        subject = subjects.function_of(type(question))()
        answer = await client.bus.ask(subject, question, reply, timeout_s=1.0)
        assert (answer.refusal, answer.detail) == ("full", WHY)
        await part.stop()


async def test_an_engine_that_is_refused_keeps_no_other_from_being_written():
    clock = ManualClock()
    async with connected_host("registry", clock=clock) as host:
        store = Choosy(["e1"])
        engines = EngineService(host, RegistrySettings(), cast("Records", store))
        await engines.start()
        await clock.run_for(0.1)
        for name in ("e0", "e1", "e2"):
            engines.on_heartbeat(example(HeartbeatSent, component="worker", instance=name))
        await clock.run_for(3.0)
        assert sorted(set(store.taken)) == ["e0", "e2"]
        assert host.counters["engine_records_refused_total"] >= 1
        assert "engine_records_unwritten_total" not in host.counters
        await engines.stop()
