"""The simulated engine keeps its promises: exact stories, real time, nothing left over."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from components.domain.bodies import Emitted
from components.domain.cost import step_ms
from components.domain.engine_model.request import EngineLimits
from components.domain.pages import page_hashes
from components.domain.profiles import StepTimeProfile, profile_named
from components.domain.story import Story
from components.host.clock import SystemClock
from components.worker.engine import (
    EngineRefused,
    Job,
    JobFailed,
    KvSource,
    Moved,
    MoveFailed,
    Prefilled,
)
from components.worker.simulated.engine import SimulatedEngine, SimulatedModel
from components.worker.simulated.link import SimulatedLink
from schemas.body import SamplingParameters
from tests.support.nats import until
from tests.support.sink import Sink

PROMPT = tuple(range(300, 340))
INSTANT = "constant"


class BrokenLink(SimulatedLink):
    """Moves nothing and says so."""

    def send(self, key, peer, bytes_total, done):
        asyncio.get_running_loop().call_soon(done, key, "cable cut")


class SlowMachine(SystemClock):
    """Every look at the clock takes 1 ms, once it is slow."""

    def __init__(self):
        self.spent_s, self.is_slow = 0.0, False

    def now_s(self):
        self.spent_s += 1e-3 * self.is_slow
        return super().now_s() + self.spent_s


@asynccontextmanager
async def engine(
    profile=INSTANT, *, link=SimulatedLink, clock=None, speed=1.0, context=4096, **limits
):
    clock = clock or SystemClock()
    faults: list[BaseException] = []
    made = SimulatedEngine(
        SimulatedModel("sim/words", 1, context),
        profile_named(profile),
        EngineLimits(**{"kv_pages": 500, **limits}),
        clock=clock,
        link=link(clock, gb_per_s=1.0, latency_ms=1.0, speed=speed),
        speed=speed,
        on_fault=faults.append,
    )
    sink = Sink()
    await made.start(sink)
    yield made, sink
    load = made.load()
    await made.stop()
    if faults:
        raise faults[0]
    assert (load.running, load.waiting, load.queued_tokens) == (0, 0, 0)
    assert load.kv_pages_used == 0
    assert not made._jobs
    assert not made._writings


def job(request_id="r1", phase="aggregated", prompt=PROMPT, emitted=None, kv=None, **sampling):
    parameters = SamplingParameters(**{"max_tokens": 30, "ignore_eos": True, **sampling})
    given = {c: Emitted(tuple(ids), done) for c, (ids, done) in (emitted or {}).items()}
    return Job(request_id, 1, phase, prompt, parameters, given, page_hashes(prompt, 7), kv)


def told(choice=0, emitted=(), prompt=PROMPT, **sampling):
    """(ids, text, finish) that must come out."""
    parameters = SamplingParameters(**{"max_tokens": 30, "ignore_eos": True, **sampling})
    story = Story(prompt, emitted, parameters, choice)
    ids, text = [], ""
    while story.finish is None:
        written = story.next()
        ids.append(written.token_id)
        text += written.text
    return ids, text, story.finish


def kv():
    return KvSource("t1", "prefill-0", 40, 1000, {"cached_tokens": 32})


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"ignore_eos": False, "max_tokens": 2000},
        {"stop": (" the", "."), "max_tokens": 200},
        {"stop_token_ids": (5,), "min_tokens": 3},
        {"seed": 3, "temperature": 0.0, "presence_penalty": 1.0, "repetition_penalty": 1.2},
        {"max_tokens": 1},
    ],
)
async def test_what_comes_out_is_the_story_of_the_prompt(sampling):
    async with engine() as (made, sink):
        made.submit(job(**sampling))
        await until(lambda: sink.finish() is not None)
        ids, text, finish = told(**sampling)
        assert (sink.ids(), sink.text(), sink.finish()) == (ids, text, [*finish, 0])
        assert [e[3] for e in sink.of()] == list(range(len(ids)))


async def test_a_step_that_falls_due_while_another_is_told_is_told_too():
    clock = SlowMachine()
    async with engine("constant:ttft_ms=5,itl_ms=5", clock=clock) as (made, sink):
        for number in range(20):
            made.submit(job(f"r{number}", max_tokens=11 if number == 19 else 10))
        clock.is_slow = True
        await until(lambda: all(sink.finish(f"r{n}") for n in range(20)), "20 ends")


async def test_choices_are_sequences_of_their_own_and_share_the_prompts_pages():
    async with engine("constant:ttft_ms=5,itl_ms=5") as (made, sink):
        made.submit(job(n=3, seed=1))
        await until(lambda: made.running == 3)
        # 40 tokens are two full pages and a third; the two are there once.
        assert made.load().kv_pages_used < 3 * 3 + 3
        await until(lambda: all(sink.finish("r1", c) for c in range(3)))
        stories = [told(c, seed=1)[0] for c in range(3)]
        assert [sink.ids("r1", c) for c in range(3)] == stories
        assert [sink.finish("r1", c)[2] for c in range(3)] == [0, 32, 32]
        assert len({tuple(s) for s in stories}) == 3


async def test_logprobs_come_with_their_tokens():
    async with engine() as (made, sink):
        made.submit(job(logprobs=2, max_tokens=4))
        await until(lambda: sink.finish() is not None)
        for entry in sink.of():
            [[chosen, *top]] = entry[6]["logprobs"]
            assert [chosen[0]] == entry[4]
            assert len(top) == 2


async def test_a_continuation_goes_on_where_it_stood():
    ids, text, _ = told()
    async with engine() as (made, sink):
        made.submit(job(emitted={0: (ids[:11], False)}))
        await until(lambda: sink.finish() is not None)
        assert (sink.ids(), sink.of()[0][3]) == (ids[11:], 11)
        whole = Story(PROMPT, (), SamplingParameters(max_tokens=30, ignore_eos=True))
        before = "".join(whole.next().text for _ in range(11))
        assert before + sink.text() == text


async def test_choices_that_were_complete_are_not_written_again():
    ids, _, _ = told(1, seed=1)
    async with engine() as (made, sink):
        made.submit(job(n=3, seed=1, emitted={0: ((1, 2), True), 1: (ids, False)}))
        await until(lambda: sink.finish("r1", 2) is not None)
        assert sink.of("r1", 0) == []
        # That one is complete by its ids, but its end was not said: it is said now.
        assert [(e[3], e[4], e[7]) for e in sink.of("r1", 1)] == [(30, [], ["length", None, 0])]
        assert sink.ids("r1", 2) == told(2, seed=1)[0]


async def test_one_step_comes_as_one_call_with_everybodys_tokens():
    # An engine's steps are everybody's; under a constant profile each request has its own clock.
    # Slowed down, so that a busy machine wakes it within the step that is due.
    async with engine("llama3-8b/tp1/h100", speed=0.2) as (made, sink):
        for number in range(8):
            made.submit(job(f"r{number}", max_tokens=5))
        await until(lambda: all(sink.finish(f"r{n}") for n in range(8)))
        calls = [count for _, count in sink.calls if count]
        assert sum(calls) == 8 * 5
        assert [len(sink.ids(f"r{n}")) for n in range(8)] == [5] * 8
        # Who comes while a step runs joins the next one; a late wake-up only merges steps.
        assert len(calls) <= 5 + 2


async def test_it_keeps_time_without_drift_also_after_a_stall():
    async with engine("constant:ttft_ms=40,itl_ms=10") as (made, sink):
        started_s = time.monotonic()
        made.submit(job(max_tokens=30))
        await until(lambda: len(sink.ids()) >= 5)
        time.sleep(0.1)  # noqa: ASYNC251  (the stall: nothing in this process runs)
        await until(lambda: sink.finish() is not None)
        assert time.monotonic() - started_s > 0.325  # 40 + 29 * 10 ms
        assert max(count for _, count in sink.calls) >= 8  # all at once
        at_s = [at_s for at_s, count in sink.calls for _ in range(count)]
        late_s = [at - started_s - 0.04 - 0.01 * i for i, at in enumerate(at_s)]
        assert min(late_s) > -0.002
        assert min(late_s[-5:]) < 0.08  # and not the length of the stall
        assert sink.ids() == told()[0]


async def test_speed_divides_time():
    async with engine("constant:ttft_ms=400,itl_ms=100", speed=20.0) as (made, sink):
        started_s = time.monotonic()
        made.submit(job(max_tokens=30))
        await until(lambda: sink.finish() is not None)
        assert 0.16 < time.monotonic() - started_s < 2.5  # and not 3.3 s


async def test_as_fast_as_possible_still_lets_the_loop_turn():
    async with engine() as (made, sink):
        made.submit(job(max_tokens=3000, prompt=PROMPT))
        turns = 0
        while sink.finish() is None:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 2000
        assert made.watermark >= 3000


async def test_an_aborted_job_frees_everything_at_once_and_says_nothing():
    async with engine("constant:ttft_ms=5,itl_ms=5") as (made, sink):
        made.submit(job(max_tokens=4000, n=2))
        await until(lambda: len(sink.ids()) > 3)
        made.abort(("r1", 1))
        assert made.load().kv_pages_used == 0
        before = len(sink.entries)
        made.submit(job("r2", max_tokens=2))
        await until(lambda: sink.finish("r2") is not None)
        assert [e for e in sink.entries[before:] if e[0] == "r1"] == []
        made.abort(("r1", 1))


# Prefill and decode


async def test_a_prefill_keeps_its_pages_until_they_are_released():
    async with engine("llama3-8b/tp1/h100", speed=100.0) as (made, sink):
        made.submit(job(phase="prefill"))
        await until(lambda: bool(sink.events))
        [event] = sink.events
        bytes_total = 40 * made.capabilities.kv_bytes_per_token
        assert event == Prefilled(("r1", 1), 40, 3, bytes_total, 0, {"cached_tokens": 0})
        assert (made.load().kv_pages_used, made.running) == (3, 0)
        made.send_kv(("r1", 1), "decode-0")
        await until(lambda: len(sink.events) == 2)
        assert sink.events[1] == Moved(("r1", 1), bytes_total)
        assert made.load().kv_pages_used == 3
        made.release(("r1", 1))
        made.release(("r1", 1))
        # The prompt is known now.
        made.submit(job("r2", phase="prefill"))
        await until(lambda: len(sink.events) == 3)
        assert sink.events[2].cached_tokens == 32
        made.release(("r2", 1))


async def test_moving_takes_bytes_over_bandwidth_and_transfers_follow_each_other():
    async with engine("constant:kv_bytes_per_token=1000000") as (made, sink):
        for number in range(2):
            made.submit(job(f"r{number}", phase="prefill"))
        await until(lambda: len(sink.events) == 2)
        started_s = time.monotonic()
        for number in range(2):
            made.send_kv((f"r{number}", 1), "decode-0")
        await until(lambda: len(sink.events) == 4)
        assert time.monotonic() - started_s > 0.078  # 2 * 40 MB at 1 GB/s
        for number in range(2):
            made.release((f"r{number}", 1))


async def test_a_stopped_or_broken_transfer_reports_what_it_must():
    async with engine() as (made, sink):
        made.submit(job(phase="prefill"))
        await until(lambda: bool(sink.events))
        made.send_kv(("r1", 1), "decode-0")
        made.stop_sending(("r1", 1))
        await asyncio.sleep(0.01)
        assert len(sink.events) == 1
        made.release(("r1", 1))
    async with engine(link=BrokenLink) as (made, sink):
        made.submit(job(phase="prefill"))
        await until(lambda: bool(sink.events))
        made.send_kv(("r1", 1), "decode-0")
        await until(lambda: len(sink.events) == 2)
        assert sink.events[1] == MoveFailed(("r1", 1), "cable cut")
        made.release(("r1", 1))


async def test_a_decode_waits_for_its_kv_and_then_tells_the_same_story():
    async with engine() as (made, sink):
        made.submit(job(phase="decode", kv=kv()))
        await asyncio.sleep(0.01)
        assert (sink.entries, made.running, made.load().waiting) == ([], 0, 1)
        made.kv_arrived(("r1", 1))
        made.kv_arrived(("r1", 1))
        await until(lambda: sink.finish() is not None)
        assert (sink.ids(), sink.finish()[2]) == (told()[0], 32)


async def test_a_parked_decode_can_be_aborted():
    async with engine() as (made, sink):
        made.submit(job(phase="decode", kv=kv(), n=2))
        made.abort(("r1", 1))
        made.kv_arrived(("r1", 1))
        await asyncio.sleep(0.005)
        assert sink.entries == []


# Refusals and limits


async def test_what_does_not_fit_is_refused_and_leaves_nothing():
    async with engine(context=64) as (made, _):
        with pytest.raises(EngineRefused) as refused:
            made.submit(job(prompt=tuple(range(300, 364))))
        assert refused.value.nack == "too_long"
    async with engine("constant:ttft_ms=200", waiting_max=1, seqs_max=1) as (made, sink):
        made.submit(job("r1", max_tokens=1))
        made.submit(job("r2", max_tokens=1))
        with pytest.raises(EngineRefused) as refused:
            made.submit(job("r3"))
        assert refused.value.nack == "full"
        await until(lambda: sink.finish("r2") is not None)


async def test_the_context_bounds_the_output():
    async with engine(context=64) as (made, sink):
        made.submit(job(max_tokens=1000))
        await until(lambda: sink.finish() is not None)
        assert (len(sink.ids()), sink.finish()[0]) == (24, "length")


async def test_choices_that_find_no_place_fail_the_job():
    limits = {"waiting_max": 1, "seqs_max": 1}
    async with engine("constant:ttft_ms=5,itl_ms=5", **limits) as (made, sink):
        made.submit(job(n=4, max_tokens=500))
        await until(lambda: bool(sink.events))
        assert isinstance(sink.events[0], JobFailed)


async def test_a_stopped_engine_is_silent():
    async with engine("constant:ttft_ms=5,itl_ms=5") as (made, sink):
        made.submit(job(max_tokens=4000))
        made.submit(job("r2", phase="prefill"))
        await until(lambda: len(sink.ids()) > 2)
        await made.stop()
        before = len(sink.entries)
        await asyncio.sleep(0.02)
        assert len(sink.entries) == before


async def test_it_learns_what_its_steps_cost_as_a_real_engine_does():
    profile = profile_named("llama3-8b/tp1/h100")
    assert isinstance(profile, StepTimeProfile)
    async with engine("llama3-8b/tp1/h100", speed=4.0, kv_pages=4_000) as (made, sink):
        assert made.load().step_fit is None
        for number in range(6):
            prompt = tuple(range(300, 340 + 400 * number))
            made.submit(job(f"r{number}", prompt=prompt, max_tokens=60 + 30 * number))
        await until(lambda: all(sink.finish(f"r{n}") for n in range(6)), "the stories end")
        fit = made.load().step_fit
    assert fit is not None
    for running in (1, 4):
        expected_ms = profile.step_ms(decoding=running, context_tokens=1_000 * running) / 4.0
        said_ms = step_ms(fit, tokens=running, running=running, context=1_000 * running)
        assert said_ms == pytest.approx(expected_ms, rel=0.1)


async def test_where_each_request_has_its_own_clock_there_is_nothing_to_learn():
    async with engine("constant:ttft_ms=1,itl_ms=0.1") as (made, sink):
        made.submit(job())
        await until(lambda: sink.finish() is not None, "the story ends")
        assert made.load().step_fit is None
