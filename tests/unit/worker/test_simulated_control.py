"""What operators ask of a simulated engine: it stands still, sleeps, forgets."""

import asyncio

from components.host.clock import ManualClock
from components.worker.engine import JobFailed, Prefilled
from components.worker.simulated.halting_clock import HaltingClock
from tests.support.nats import until
from tests.unit.worker.test_simulated_engine import engine, job, told

SLOW = "constant:ttft_ms=5,itl_ms=5"
#: A busy machine wakes an engine late, and steps that are due by then come together.
SLOWER = "constant:ttft_ms=30,itl_ms=30"


def test_a_halted_clock_goes_on_from_where_it_stood():
    hand = ManualClock(10.0)
    clock = HaltingClock(hand)
    clock.halt()
    hand.advance(4.0)
    clock.halt()
    assert (clock.now_s(), clock.is_halted) == (10.0, True)
    clock.go_on()
    hand.advance(1.0)
    clock.go_on()
    assert (clock.now_s(), clock.is_halted) == (11.0, False)
    clock.halt()
    hand.advance(5.0)
    clock.go_on()
    assert clock.now_s() == 11.0


async def test_a_paused_engine_gives_nothing_and_then_the_rest_of_the_story():
    async with engine(SLOWER) as (made, sink):
        made.submit(job())
        await until(lambda: len(sink.ids()) > 3)
        await made.pause(keep=True)
        said = len(sink.ids())
        made.submit(job("r2"))
        await asyncio.sleep(0.3)
        assert (len(sink.ids()), made.running) == (said, 0)
        assert not sink.of("r2")
        await made.resume()
        await until(lambda: bool(sink.finish() and sink.finish("r2")))
        assert sink.ids() == told()[0]
        assert sink.ids("r2") == told()[0]
        # No burst: the time that it stood still did not pass.
        assert max(entries for _, entries in sink.calls) <= 2


async def test_a_pause_that_keeps_nothing_loses_what_runs_but_not_what_is_held():
    async with engine(SLOW) as (made, sink):
        made.submit(job("held", "prefill"))
        await until(lambda: any(isinstance(e, Prefilled) for e in sink.events))
        made.submit(job("runs"))
        await until(lambda: made.running == 1)
        await made.pause(keep=False)
        await until(lambda: len(sink.events) == 2)
        assert isinstance(sink.events[1], JobFailed)
        assert sink.events[1].key == ("runs", 1)
        assert made.load().kv_pages_used == 3
        await made.resume()
        made.release(("held", 1))


async def test_sleep_loses_everything_and_wake_begins_anew():
    async with engine(SLOW) as (made, sink):
        made.submit(job("held", "prefill"))
        await until(lambda: bool(sink.events))
        made.submit(job("runs"))
        await until(lambda: made.running == 1)
        await made.sleep(2)
        await until(lambda: len(sink.events) == 3)
        assert made.load().kv_pages_used == 0
        await made.wake()
        made.submit(job("again"))
        await until(lambda: sink.finish("again") is not None)
        assert sink.ids("again") == told()[0]
        assert sink.finish("again")[2] == 0  # nothing was found in the cache


async def test_a_cache_is_forgotten_only_when_nobody_holds_pages():
    async with engine(SLOW) as (made, sink):
        made.submit(job("r1"))
        await until(lambda: made.running == 1)
        assert await made.reset_prefix_cache() is False
        await until(lambda: sink.finish() is not None)
        made.submit(job("r2", max_tokens=1))
        await until(lambda: sink.finish("r2") is not None)
        assert sink.finish("r2")[2] == 32
        assert await made.reset_prefix_cache() is True
        made.submit(job("r3", max_tokens=1))
        await until(lambda: sink.finish("r3") is not None)
        assert sink.finish("r3")[2] == 0
