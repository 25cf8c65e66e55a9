import asyncio

import pytest

from components.host.clock import ManualClock, SystemClock
from components.host.tasks import Tasks


@pytest.fixture
def faults() -> list[BaseException]:
    return []


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def tasks(clock: ManualClock, faults: list[BaseException]):
    tasks = Tasks(clock, faults.append)
    yield tasks
    await tasks.stop()


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_an_exception_that_nobody_expected_is_a_fault_that_names_the_task(tasks, faults):
    async def breaks() -> None:
        raise ValueError("oh")

    task = tasks.spawn("repair", breaks())
    await asyncio.wait({task})
    assert [str(f) for f in faults] == ["oh"]
    assert faults[0].__notes__ == ["in the side task 'repair'"]
    assert len(tasks) == 0


async def test_a_cancelled_task_is_no_fault(tasks, faults):
    tasks.spawn("a", _for_ever()).cancel()
    await tasks.drain(1.0)
    assert not faults


async def test_the_result_of_a_task_can_be_awaited(tasks):
    async def answer() -> int:
        return 42

    assert await tasks.spawn("answer", answer()) == 42


async def test_a_timer_keeps_to_its_grid_and_leaves_out_what_it_missed(tasks, clock):
    beats: list[float] = []
    tasks.every("beat", 0.25, lambda: beats.append(clock.now_s() - 1000))
    await clock.run_for(1.0)
    assert beats == [0.25, 0.5, 0.75, 1.0]
    clock.advance(0.6)  # a loop that was busy for 0.6 s
    await clock.run_for(0.4)
    assert beats == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.6, 1.75, 2.0])


async def test_a_slow_callback_never_overlaps_itself(tasks, clock):
    running = most = 0

    async def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await clock.sleep(0.35)
        running -= 1

    tasks.every("slow", 0.1, slow)
    await clock.run_for(2.0)
    assert most == 1


def _missing() -> None:
    raise KeyError("x")


async def test_a_cancelled_timer_is_silent_and_a_failing_one_is_a_fault(tasks, clock, faults):
    beats: list[int] = []
    timer = tasks.every("beat", 0.1, lambda: beats.append(1))
    tasks.every("broken", 0.3, _missing)
    await clock.run_for(0.2)
    timer.cancel()
    await clock.run_for(1.0)
    assert len(beats) == 2
    assert [type(f) for f in faults] == [KeyError]


async def test_drain_waits_for_tasks_by_prefix_and_names_what_is_left_with_its_age(clock, faults):
    tasks = Tasks(clock, faults.append)
    done = asyncio.Event()
    _ = tasks.spawn("attempt r1", done.wait())
    _ = tasks.spawn("watch", _for_ever())
    tasks.every("beat", 1.0, lambda: None)
    await clock.run_for(3.25)
    left = await tasks.drain(0.01, prefix="attempt")
    assert [str(t) for t in left] == ["attempt r1 (3.2 s)"]
    done.set()
    assert await tasks.drain(1.0, prefix="attempt") == []
    assert [t.name for t in tasks.running()] == ["watch"]
    assert await tasks.stop() == []
    assert len(tasks) == 0


async def test_drain_also_waits_for_what_a_task_spawns_meanwhile(tasks):
    order: list[str] = []

    async def child() -> None:
        order.append("child")

    async def parent() -> None:
        tasks.spawn("child", child())

    tasks.spawn("parent", parent())
    assert await tasks.drain(1.0) == []
    assert order == ["child"]


async def test_stop_names_what_does_not_let_itself_be_cancelled():
    tasks = Tasks(SystemClock(), lambda error: None)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    _ = tasks.spawn("stubborn", stubborn())
    await asyncio.sleep(0)
    assert [t.name for t in await tasks.stop(grace_s=0.01)] == ["stubborn"]
    release.set()
    await tasks.drain(1.0)


async def test_a_task_spawned_after_stop_does_not_run(tasks):
    ran: list[int] = []

    async def late() -> None:
        ran.append(1)

    await tasks.stop()
    task = tasks.spawn("late", late())
    await asyncio.wait({task})
    assert not ran
