"""What operators want of a worker, asked on the bus: done, or refused with a reason."""

import asyncio

import pytest

from bus import subjects
from bus.memory_bus import MemoryHub
from schemas.engine import ControlEngine, ControlEngineReply
from tests.integration.worker.fleet import fleet, story
from tests.support.nats import until

SLOW = "constant:ttft_ms=5,itl_ms=5"


@pytest.fixture
def hub():
    return MemoryHub()


async def ask(yard, action, worker="aggregated-0", **more):
    control = ControlEngine(action=action, **more)
    subject = subjects.control_engine(worker)
    return await yard.gateway.bus.ask(subject, control, ControlEngineReply, timeout_s=5)


async def test_a_pause_freezes_a_stream_and_a_resume_ends_it(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        yard.dispatch("aggregated-0")
        await until(lambda: len(yard.ids()) > 3)
        reply = await ask(yard, "pause")
        assert (reply.done, reply.activity, reply.accepting) == (True, "paused", True)
        await asyncio.sleep(0.02)
        said = len(yard.ids())
        await asyncio.sleep(0.1)
        assert len(yard.ids()) == said
        assert yard.load("aggregated-0").activity == "paused"
        assert yard.workers["aggregated-0"].heartbeat()["running"] == 0  # nobody may blame it
        yard.dispatch("aggregated-0", "r2")
        await until(lambda: bool(yard.states("r2")))
        assert yard.states("r2") == [("refused", "draining")]
        assert (await ask(yard, "resume")).activity == "running"
        assert await yard.finished() == story()
        await yard.idle("aggregated-0")


@pytest.mark.parametrize(("action", "more"), [("pause", {"keep": False}), ("sleep", {"level": 2})])
async def test_what_an_operator_aborts_is_said_to_have_failed_so_that_it_goes_on_elsewhere(
    hub, action, more
):
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        yard.dispatch("aggregated-0")
        await until(lambda: len(yard.ids()) > 3)
        assert (await ask(yard, action, **more)).done
        await until(lambda: yard.states()[-1][0] == "ended")
        assert yard.states()[-1] == ("ended", "error")
        await ask(yard, "wake" if action == "sleep" else "resume")
        await yard.idle("aggregated-0")
        yard.dispatch("aggregated-0", "r2")
        assert await yard.finished("r2") == story()


async def test_a_drain_takes_nothing_new_and_finishes_what_is_there(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        yard.dispatch("aggregated-0")
        await until(lambda: bool(yard.ids()))
        reply = await ask(yard, "drain")
        assert (reply.done, reply.accepting, reply.activity) == (True, False, "running")
        assert yard.load("aggregated-0").accepting is False
        yard.dispatch("aggregated-0", "r2")
        assert await yard.finished() == story()
        assert yard.states("r2") == [("refused", "draining")]
        assert (await ask(yard, "accept")).accepting
        yard.dispatch("aggregated-0", "r3")
        assert await yard.finished("r3") == story()


async def test_a_role_changes_when_the_work_is_done_and_shows_everywhere(hub):
    async with fleet(hub, "decode-0", profile=SLOW) as yard:
        yard.dispatch("decode-0")
        await until(lambda: bool(yard.ids()))
        reply = await ask(yard, "set_role", "decode-0", role="prefill")
        assert (reply.done, reply.role, reply.accepting) == (True, "prefill", True)
        assert yard.finish()  # it had waited for that
        assert yard.load("decode-0").role == "prefill"
        assert yard.workers["decode-0"].heartbeat()["role"] == "prefill"


async def test_a_role_that_cannot_change_in_time_stays(hub):
    async with fleet(hub, "decode-0", profile="constant:ttft_ms=5,itl_ms=50") as yard:
        yard.dispatch("decode-0")
        await until(lambda: bool(yard.ids()))
        reply = await ask(yard, "set_role", "decode-0", role="prefill", deadline_ms=50)
        assert (reply.done, reply.role) == (False, "decode")
        assert reply.detail == "1 attempts were left after 50 ms"
        assert (await ask(yard, "drain", "decode-0")).done  # it is not busy any more
        yard.cancel("decode-0")
        await yard.idle("decode-0")


async def test_a_prefix_cache_in_use_is_not_forgotten(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        yard.dispatch("aggregated-0")
        await until(lambda: bool(yard.ids()))
        reply = await ask(yard, "reset_prefix_cache")
        assert (reply.done, reply.detail) == (False, "pages are in use")
        await yard.finished()
        await yard.idle("aggregated-0")
        assert (await ask(yard, "reset_prefix_cache")).done


async def test_a_wish_that_takes_too_long_goes_on_and_says_so(hub):
    async with fleet(hub, "aggregated-0") as yard:
        woken = asyncio.Event()

        async def slow(level):
            await woken.wait()

        yard.workers["aggregated-0"]._engine.sleep = slow
        late = await ask(yard, "sleep", deadline_ms=20)
        assert (late.done, late.detail) == (False, "still under way after 20 ms")
        busy = await ask(yard, "drain")
        assert (busy.done, busy.detail) == (False, "busy: sleep is under way")
        woken.set()
        await until(lambda: yard.workers["aggregated-0"]._core.posture.activity == "asleep")


async def test_an_engine_that_breaks_on_a_wish_is_heard_and_stays_as_it_was(hub):
    async with fleet(hub, "aggregated-0") as yard:

        async def broken(*, keep):
            raise RuntimeError("no")

        yard.workers["aggregated-0"]._engine.pause = broken
        reply = await ask(yard, "pause")
        assert (reply.done, reply.detail, reply.activity) == (False, "RuntimeError: no", "running")
