"""What other registries wrote is read, whatever happens while it is."""

import asyncio
from collections.abc import Iterable

from bus.errors import StreamUnavailable
from components.host.clock import ManualClock
from components.registry.loading import RETRY_S
from components.registry.looks import LATE_S, NAMES_MAX, TRIES, TRIES_MAX, TRY_AGAIN_S, Looks
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
