"""The fleet at an instant, from what its streams hold."""

from bus import codec, subjects
from components.host.journal import EventRef, Tick, pack_inputs, pack_outcomes
from components.replay.instant import FORGOTTEN_MS, instant
from components.scheduler.core import SchedulerCore
from components.scheduler.settings import SchedulerSettings
from schemas.engine import EngineLoadReported
from schemas.examples import CARD, example
from schemas.fleet import FleetExpired, FleetJoined, FleetLeft, FleetRegistered
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.request import CancelRequest, ScheduleRequest
from tests.support.past import PastInMemory

EPOCH = 500


def fleet() -> PastInMemory:
    past = PastInMemory(FLEET=(), ENGINE_STATE=(), REQUESTS=(), JOURNAL=())
    joined(past, "decode-0", 1_000)
    joined(past, "scheduler-0", 1_000, component="scheduler")
    return past


def joined(
    past: PastInMemory, name: str, at_ms: int, epoch: int = EPOCH, component: str = "worker"
) -> None:
    message = example(
        FleetJoined, instance=name, component=component, process_epoch=epoch, at_ms=at_ms
    )
    past.add("FLEET", subjects.fleet_joined(name), message)


def left(past: PastInMemory, name: str, at_ms: int, epoch: int = EPOCH) -> None:
    message = example(FleetLeft, instance=name, process_epoch=epoch, at_ms=at_ms)
    past.add("FLEET", subjects.fleet_left(name), message)


def said(past: PastInMemory, at_ms: int, running: int, name: str = "decode-0") -> None:
    load = example(EngineLoadReported, engine=name, running=running, at_ms=at_ms)
    past.add("ENGINE_STATE", subjects.engine_load_reported(name), load, source=name, epoch=EPOCH)


async def test_who_came_and_had_not_left_is_there():
    past = fleet()
    left(past, "decode-0", 2_000)
    joined(past, "decode-0", 3_000, epoch=EPOCH + 1)
    names = {}
    for at_ms in (999, 1_500, 2_500, 3_500):
        then = await instant(past, at_ms)
        names[at_ms] = [(p.instance, p.process_epoch) for p in then.processes]
    assert names == {
        999: [],
        1_500: [("decode-0", EPOCH), ("scheduler-0", EPOCH)],
        2_500: [("scheduler-0", EPOCH)],
        3_500: [("decode-0", EPOCH + 1), ("scheduler-0", EPOCH)],
    }


async def test_an_old_life_that_is_said_to_have_left_late_takes_nobody_away():
    past = fleet()
    joined(past, "decode-0", 3_000, epoch=EPOCH + 1)
    left(past, "decode-0", 3_001)
    assert [p.process_epoch for p in (await instant(past, 4_000)).processes] == [EPOCH + 1, EPOCH]


async def test_each_engine_is_as_it_had_said_last():
    past = fleet()
    said(past, 1_100, running=1)
    said(past, 1_200, running=2)
    said(past, 5_000, running=3)
    (before,) = (await instant(past, 1_199)).engines
    (then,) = (await instant(past, 4_000)).engines
    assert before.load is not None
    assert then.load is not None
    assert (before.load.running, before.age_ms, before.stale) == (1, 99, False)
    assert (then.load.running, then.age_ms, then.stale) == (2, 2_800, True)
    assert (await instant(past, 5_000 + FORGOTTEN_MS + 1)).engines == ()


async def test_engines_elsewhere_are_there_until_they_expired():
    past = fleet()
    there = example(FleetRegistered, at_ms=1_500)
    past.add("FLEET", subjects.fleet_registered(there.instance), there)
    gone = example(FleetExpired, instance=there.instance, at_ms=2_500)
    past.add("FLEET", subjects.fleet_expired(there.instance), gone)
    assert [r.instance for r in (await instant(past, 2_000)).registered] == [there.instance]
    assert (await instant(past, 3_000)).registered == ()


class Scheduler:
    """A scheduler that journals into a past, one entry per message."""

    def __init__(self, past: PastInMemory) -> None:
        self.past = past
        self.settings = SchedulerSettings()
        self.core = SchedulerCore("scheduler-0", self.settings)
        self.index = 0

    def snapshot(self, at_ms: int) -> None:
        message = JournalSnapshotted(
            component="scheduler",
            owner="scheduler-0",
            owner_epoch=EPOCH,
            index=self.index,
            now_s=at_ms / 1000,
            settings_hash="",
            settings=self.settings.model_dump_json(),
            state=codec.pack(self.core.snapshot()),
            at_ms=at_ms,
        )
        self._keep(subjects.journal_snapshotted("scheduler-0"), message)

    def turn(self, at_ms: int, message: ScheduleRequest | CancelRequest | None) -> None:
        self.index += 1
        if message is None:
            outcomes = self.core.on_tick(at_ms / 1000)
        else:
            outcomes = self.core.on_message(message, at_ms / 1000)
        entry = JournalAppended(
            owner="scheduler-0",
            owner_epoch=EPOCH,
            index=self.index,
            now_s=at_ms / 1000,
            settings_hash="",
            inputs=pack_inputs([message or Tick()]),
            outcomes=pack_outcomes(outcomes),
            at_ms=at_ms,
        )
        self._keep(subjects.journal_appended("scheduler-0"), entry)

    def _keep(self, subject: str, message: JournalSnapshotted | JournalAppended) -> None:
        self.past.add("JOURNAL", subject, message, source="scheduler-0", epoch=EPOCH)


def request(name: str) -> ScheduleRequest:
    return ScheduleRequest(card=CARD.model_copy(update={"request_id": name}))


async def test_the_queue_is_rebuilt_from_the_last_snapshot_and_what_followed():
    past = fleet()
    scheduler = Scheduler(past)
    scheduler.snapshot(1_000)
    scheduler.turn(1_100, request("a"))
    scheduler.snapshot(1_150)
    scheduler.turn(1_200, request("b"))
    scheduler.turn(1_300, CancelRequest(request_id="a"))
    waiting = {}
    for at_ms in (1_050, 1_100, 1_250, 1_300):
        then = await instant(past, at_ms)
        waiting[at_ms] = [(w.request_id, w.waited_ms) for w in then.waiting]
    assert waiting == {
        1_050: [],
        1_100: [("a", 0)],
        1_250: [("a", 150), ("b", 50)],
        1_300: [("b", 100)],
    }
    (core,) = (await instant(past, 1_350)).cores
    assert (core.instance, core.entry, core.whole, core.age_ms) == ("scheduler-0", 3, True, 50)


async def test_a_missing_entry_is_told():
    past = fleet()
    scheduler = Scheduler(past)
    scheduler.snapshot(1_000)
    scheduler.turn(1_100, request("a"))
    scheduler.turn(1_200, request("b"))
    del past.streams["JOURNAL"][1]
    (core,) = (await instant(past, 1_300)).cores
    assert not core.whole


async def test_an_event_that_the_journal_refers_to_and_is_gone_is_told():
    past = fleet()
    scheduler = Scheduler(past)
    scheduler.snapshot(1_000)
    lost = EventRef("engine.load_reported.v1", "decode-0", EPOCH, 9)
    entry = example(
        JournalAppended,
        owner="scheduler-0",
        owner_epoch=EPOCH,
        index=1,
        inputs=pack_inputs([lost]),
        at_ms=1_100,
    )
    past.add("JOURNAL", subjects.journal_appended("scheduler-0"), entry)
    (core,) = (await instant(past, 1_200)).cores
    assert not core.whole


async def test_a_core_that_had_left_is_not_shown_as_if_it_lived():
    past = fleet()
    Scheduler(past).snapshot(1_000)
    left(past, "scheduler-0", 2_000)
    then = await instant(past, 3_000)
    assert then.cores == ()
    assert "scheduler-0 had left: its core is not shown" in then.notes


async def test_before_the_beginning_the_history_says_that_it_holds_nothing():
    then = await instant(fleet(), 1)
    assert "FLEET holds nothing from so long ago" in then.notes
