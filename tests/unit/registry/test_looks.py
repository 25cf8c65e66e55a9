"""What other registries wrote is read, whatever happens while it is."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import pytest

from bus import subjects
from bus.errors import StreamUnavailable
from bus.memory_bus import MemoryHub
from bus.records import Record, Records
from components.host.clock import ManualClock
from components.registry import looks
from components.registry.key_service import KeyService
from components.registry.loading import RETRY_S
from components.registry.looks import (
    ASKED_MAX,
    FIRST_MAX,
    LATE_S,
    NAMES_MAX,
    TRIES,
    TRIES_MAX,
    TRY_AGAIN_S,
    FirstLooks,
    Looks,
)
from components.registry.node_service import NodeService
from components.registry.settings import RegistrySettings
from schemas.keys import CheckKey, CheckKeyReply
from schemas.message import Message
from schemas.nodes import ShowNode, ShowNodeReply
from tests.support.host import HostInTest, connected_host


class Store:
    """Counts what is read; ``behind`` are records that are not yet as new as was told."""

    def __init__(self, host: HostInTest, behind: Iterable[str] = ()) -> None:
        self.whole = 0
        self.names: list[str] = []
        self.behind = set(behind)
        self.away = False
        self.open = asyncio.Event()
        self.open.set()
        self.looks = Looks(host, "records", self.read_all, self.read)
        self.looks.start()

    async def read_all(self) -> None:
        self.whole += 1
        await self.open.wait()
        if self.away:
            raise StreamUnavailable("gone")

    async def read(self, name: str, revision: int | None) -> bool:
        self.names.append(name)
        return name not in self.behind


async def test_what_may_have_been_missed_while_everything_is_read_is_read_again():
    clock = ManualClock()
    async with connected_host("registry", clock=clock) as host:
        store = Store(host)
        store.open.clear()
        await clock.run_for(0.1)
        store.looks.at_all()
        for number in range(NAMES_MAX + 76):
            store.looks.at(f"n{number}", 5)
        store.open.set()
        await clock.run_for(1.0)
        assert store.whole == 2
        assert len(store.names) == NAMES_MAX


async def test_what_could_not_be_read_is_read_when_the_store_is_back():
    clock = ManualClock()
    async with connected_host("registry", clock=clock) as host:
        store = Store(host)
        store.away = True
        await clock.run_for(0.1)
        store.away = False
        await clock.run_for(2 * RETRY_S)
        assert store.whole == 2


async def test_a_record_that_is_long_behind_is_read_until_it_is_not_and_holds_up_no_other():
    clock = ManualClock()
    async with connected_host("registry", clock=clock) as host:
        store = Store(host, behind=["slow"])
        await clock.run_for(0.1)
        store.looks.at("slow", 5)
        store.looks.at("quick", 5)
        await clock.run_for(TRY_AGAIN_S / 2)
        assert store.names == ["slow", "quick"]
        await clock.run_for(TRIES * TRY_AGAIN_S)
        assert store.names.count("slow") == TRIES
        assert host.counters["looks_late_total"] == 1
        store.behind.clear()
        await clock.run_for(LATE_S)
        assert store.names.count("slow") == TRIES + 1
        await clock.run_for(3 * LATE_S)
        assert (store.names.count("slow"), store.whole) == (TRIES + 1, 1)


async def test_for_a_revision_that_never_comes_everything_is_read_once():
    clock = ManualClock()
    async with connected_host("registry", clock=clock) as host:
        store = Store(host, behind=["gone"])
        await clock.run_for(0.1)
        store.looks.at("gone", 5)
        for _ in range(2 * TRIES_MAX // TRIES):
            await clock.run_for(LATE_S, turns=20)
        assert (store.names.count("gone"), store.whole) == (TRIES_MAX, 2)


async def test_few_unknown_records_are_read_at_a_time_and_each_once_for_all_who_ask():
    async with connected_host("registry", clock=ManualClock()) as host:
        reads: list[str] = []
        told: list[str] = []
        go_on = asyncio.Event()

        async def read(name: str) -> None:
            reads.append(name)
            await go_on.wait()

        first = FirstLooks(host, "records", read)
        for number in range(1000):
            first.then(f"n{number}", partial(told.append, f"n{number}"))
        assert len(told) == 1000 - FIRST_MAX, "the others hear at once what is known"
        for _ in range(ASKED_MAX):
            first.then("n0", lambda: told.append("again"))
        assert told.count("again") == 1, "that one was too many"
        assert len(host.tasks.running("first look")) == FIRST_MAX
        go_on.set()
        await host.tasks.drain(1.0)
        assert reads == [f"n{number}" for number in range(FIRST_MAX)]
        assert len(told) == 1000 + ASKED_MAX
        assert host.counters["looks_left_out_total"] == 1001 - FIRST_MAX
        first.then("n0", lambda: told.append("later"))
        await host.tasks.drain(1.0)
        assert (reads[FIRST_MAX:], told[-1]) == (["n0"], "later")


@pytest.mark.parametrize("away", [StreamUnavailable("gone"), None])
async def test_who_asks_hears_something_when_the_store_does_not_answer(
    away: StreamUnavailable | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(looks, "FIRST_S", 0.01)
    async with connected_host("registry", clock=ManualClock()) as host:

        async def read(name: str) -> None:
            if away:
                raise away
            await asyncio.Event().wait()

        told = asyncio.Event()
        FirstLooks(host, "records", read).then("n", told.set)
        async with asyncio.timeout(1):
            await told.wait()


class EmptyBuckets:
    """As ``bus.records.Records`` with nothing in it, and too slow to say so."""

    def __init__(self) -> None:
        self.asked = 0

    async def all(self, bucket: str) -> list[Record]:
        return []

    async def get(self, bucket: str, name: str) -> Record | None:
        self.asked += 1
        await asyncio.Event().wait()
        return None


@pytest.mark.parametrize(
    ("service", "question", "reply"),
    [
        (NodeService, lambda n: ShowNode(node_id=f"n{n}"), ShowNodeReply),
        (KeyService, lambda n: CheckKey(key_id=f"{n:012x}", digest=bytes(32)), CheckKeyReply),
    ],
)
async def test_who_asks_for_what_there_is_not_occupies_little_of_the_registry(
    service: type[NodeService | KeyService],
    question: Callable[[int], Message],
    reply: type[ShowNodeReply | CheckKeyReply],
):
    hub = MemoryHub()
    async with (
        connected_host("registry", hub=hub, clock=ManualClock()) as host,
        connected_host("operator", hub=hub) as client,
    ):
        buckets = EmptyBuckets()
        part = service(host, RegistrySettings(), cast("Records", buckets))
        await part.start()
        await asyncio.sleep(0.01)
        before = len(host.tasks)
        subject = subjects.function_of(type(question(0)))()

        async def asks(number: int) -> str | None:
            answer = await client.bus.ask(subject, question(number), reply, timeout_s=0.5)
            return answer.refusal

        asking = [asyncio.create_task(asks(number)) for number in range(200)]
        done, _ = await asyncio.wait(asking, timeout=0.2)
        assert [await task for task in done] == ["not_found"] * (200 - FIRST_MAX)
        assert (buckets.asked, len(host.tasks) - before) == (FIRST_MAX, FIRST_MAX)
        for task in asking:
            task.cancel()
        await part.stop()
