import asyncio
import time

from components.host.clock import ManualClock, SystemClock


async def test_a_manual_clock_wakes_sleepers_in_order_of_their_time_and_only_when_due():
    clock = ManualClock(now_s=10.0, wall_ms=5000)
    woken: list[tuple[float, float]] = []

    async def sleeper(delay_s: float) -> None:
        await clock.sleep(delay_s)
        woken.append((delay_s, clock.now_s()))

    tasks = [asyncio.create_task(sleeper(d)) for d in (3.0, 1.0, 2.0)]
    await clock.run_for(2.5)
    assert woken == [(1.0, 11.0), (2.0, 12.0)]
    assert (clock.now_s(), clock.wall_ms()) == (12.5, 7500)
    clock.advance(0.5)
    await asyncio.gather(*tasks)
    assert woken[-1] == (3.0, 13.0)


async def test_a_cancelled_sleeper_does_not_trouble_the_clock():
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await clock.run_for(2.0)
    assert task.cancelled()


async def test_sleeping_for_nothing_takes_one_turn():
    await asyncio.wait_for(ManualClock().sleep(0), timeout=1)


async def test_the_system_clock_tells_the_machine_s_time():
    clock = SystemClock()
    before_s, before_ms = clock.now_s(), clock.wall_ms()
    await clock.sleep(0.002)
    assert clock.now_s() - before_s >= 0.002
    assert abs(before_ms - time.time() * 1000) < 1000
