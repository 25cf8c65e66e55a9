"""A real vLLM keeps the promises of ``Engine``: exact tokens and text, nothing left over."""

import asyncio
import itertools
import time

import pytest
import pytest_asyncio

from components.worker.engine import EngineRefused
from tests.engine.engines import WITHIN_S, bytes_of, finished, job, running_engine
from tests.support.nats import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = bytes_of("The yard is quiet at night, and every track is free.")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tiny_model):
    async with running_engine(tiny_model) as (engine, sink):
        yield engine, sink


@pytest.fixture
def engine(yard):
    return yard[0]


@pytest.fixture
def sink(yard):
    yard[1].__init__()
    return yard[1]


SERIAL = itertools.count()


async def vllm_alone(engine, prompt=PROMPT, **given):
    """(ids, text, finish reason, stop reason) of vLLM itself, its own text and stop search."""
    vllm, inputs = pytest.importorskip("vllm"), pytest.importorskip("vllm.inputs")
    parameters = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True, **given}
    outputs = engine._backend._llm.generate(
        inputs.tokens_input(list(prompt)),
        vllm.SamplingParams(**parameters),
        f"alone-{next(SERIAL)}",
    )
    *_, last = [out async for out in outputs]
    [choice] = last.outputs
    return list(choice.token_ids), choice.text, choice.finish_reason, choice.stop_reason


async def whole(engine, sink, name="whole", **given):
    engine.submit(job(name, prompt=PROMPT, **given))
    await finished(sink, name, given.get("n", 1))
    return sink.ids(name), sink.text(name), sink.finish(name)


async def a_stop_text(engine):
    """Two characters that stand next to each other in what the model writes after some tokens."""
    ids, text, *_ = await vllm_alone(engine, max_tokens=60)
    at = next(i for i in range(10, len(text) - 1) if text[i : i + 2].isprintable())
    return text[at : at + 2], ids


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max_tokens": 1},
        {"max_tokens": 200},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"temperature": 1.0, "seed": 7, "top_p": 0.9, "top_k": 50},
        {"ignore_eos": False, "max_tokens": 100},
    ],
)
async def test_what_comes_out_is_what_vllm_writes_alone(engine, sink, given):
    expected = await vllm_alone(engine, **given)
    ids, text, finish = await whole(engine, sink, **given)
    assert (ids, text, *finish[:2]) == expected
    entries = sink.of("whole")
    assert [e[3] for e in entries] == [
        sum(len(e[4]) for e in entries[:i]) for i in range(len(entries))
    ]


async def test_a_stop_text_ends_a_choice_where_vllm_would_end_it(engine, sink):
    stop, _ = await a_stop_text(engine)
    expected = await vllm_alone(engine, max_tokens=60, stop=[stop])
    assert expected[2:] == ("stop", stop)
    ids, text, finish = await whole(engine, sink, max_tokens=60, stop=(stop,))
    assert (ids, text, *finish[:2]) == expected


async def test_a_stop_text_counts_only_after_min_tokens(engine, sink):
    stop, _ = await a_stop_text(engine)
    expected = await vllm_alone(engine, max_tokens=60, stop=[stop], min_tokens=50)
    ids, text, finish = await whole(engine, sink, max_tokens=60, stop=(stop,), min_tokens=50)
    assert (ids, text, *finish[:2]) == expected
    assert len(ids) > 50


async def test_a_stop_token_ends_a_choice_and_adds_no_text(engine, sink):
    ids, *_ = await vllm_alone(engine)
    given = {"stop_token_ids": (ids[9],)}
    expected = await vllm_alone(engine, stop_token_ids=[ids[9]])
    got_ids, text, finish = await whole(engine, sink, **given)
    assert (got_ids, text, *finish[:2]) == expected
    assert finish[:2] == ["stop", ids[9]]


def seams(entries):
    """(how many ids, the text that was released with them) wherever an entry ended."""
    ids, text = 0, ""
    for entry in entries[:-1]:
        ids += len(entry[4])
        text += entry[5]
        yield ids, text


async def test_a_continuation_repeats_and_loses_nothing(engine, sink):
    ids, text, finish = await whole(engine, sink)
    for cut, before in list(seams(sink.of("whole"))):
        name = f"after-{cut}"
        engine.submit(job(name, prompt=PROMPT, emitted={0: (ids[:cut], False)}))
        await finished(sink, name)
        assert sink.of(name)[0][3] == cut
        assert ids[:cut] + sink.ids(name) == ids
        assert before + sink.text(name) == text
        assert sink.finish(name)[:2] == finish[:2]


async def test_a_stop_text_across_the_seam_is_found(engine, sink):
    stop, _ = await a_stop_text(engine)
    given = {"prompt": PROMPT, "max_tokens": 60, "stop": (stop,)}
    engine.submit(job("whole", **given))
    await finished(sink, "whole")
    ids, text, finish = sink.ids("whole"), sink.text("whole"), sink.finish("whole")
    for cut, before in list(seams(sink.of("whole")))[-6:]:
        name = f"after-{cut}"
        engine.submit(job(name, emitted={0: (ids[:cut], False)}, **given))
        await finished(sink, name)
        assert ids[:cut] + sink.ids(name) == ids
        assert before + sink.text(name) == text
        assert sink.finish(name)[:2] == finish[:2]


async def test_a_choice_that_was_complete_only_gets_its_end(engine, sink):
    ids, *_ = await whole(engine, sink)
    engine.submit(job("length", prompt=PROMPT, emitted={0: (ids, False)}))
    engine.submit(
        job("stopped", prompt=PROMPT, stop_token_ids=(ids[4],), emitted={0: (ids[:5], False)})
    )
    await finished(sink, "length")
    await finished(sink, "stopped")
    assert [e[3:] for e in sink.of("length")] == [(24, [], "", None, ["length", None, 0])]
    assert [e[3:] for e in sink.of("stopped")] == [(5, [], "", None, ["stop", ids[4], 0])]
    assert not engine._jobs


async def test_choices_are_those_of_vllm_and_share_the_prompt(engine, sink):
    long = PROMPT * 3
    seeds = [await vllm_alone(engine, long, temperature=1.0, seed=5 + c) for c in range(3)]
    assert await engine.reset_prefix_cache()
    engine.submit(job(prompt=long, temperature=1.0, seed=5, n=3))
    await finished(sink, choices=3)
    got = [(sink.ids("r1", c), sink.text("r1", c)) for c in range(3)]
    assert got == [(ids, text) for ids, text, *_ in seeds]
    assert sorted(sink.finish("r1", c)[2] > 0 for c in range(3)) == [False, True, True]


async def test_tenants_do_not_find_each_others_pages(engine, sink):
    prompt = PROMPT * 3
    for name, tenant in (("first", 1), ("again", 1), ("stranger", 2)):
        engine.submit(job(name, prompt=prompt, tenant=tenant))
        await finished(sink, name)
    hits = {name: sink.finish(name)[2] for name in ("first", "again", "stranger")}
    assert hits == {"first": 0, "again": len(prompt) // 32 * 32, "stranger": 0}
    assert sink.ids("stranger") == sink.ids("first")


async def test_logprobs_come_with_their_tokens(engine, sink):
    engine.submit(job(prompt=PROMPT, logprobs=3, max_tokens=5))
    engine.submit(job("chosen", prompt=PROMPT, logprobs=0, max_tokens=5))
    await finished(sink)
    await finished(sink, "chosen")
    for entry in sink.of():
        rows = entry[6]["logprobs"]
        assert [row[0][0] for row in rows] == entry[4]
        for [chosen, *top] in rows:
            assert len(top) == 3
            assert top[0][:2] == chosen[:2]  # greedy takes the likeliest
            assert [t[1] for t in top] == sorted((t[1] for t in top), reverse=True)
    assert all(len(row) == 1 for e in sink.of("chosen") for row in e[6]["logprobs"])


async def test_one_step_comes_as_one_call(engine, sink):
    steps = engine.watermark
    for number in range(8):
        engine.submit(job(f"r{number}", prompt=PROMPT, max_tokens=100))
    for number in range(8):
        await finished(sink, f"r{number}")
    steps = engine.watermark - steps
    calls = [count for _, count in sink.calls if count]
    assert sum(calls) == sum(len(sink.of(f"r{n}")) for n in range(8))
    assert max(calls) == 8
    assert len(calls) <= steps  # never two for one
    assert sum(calls) / len(calls) > 6


async def test_an_abort_frees_everything_within_a_step(engine, sink):
    for number in range(4):
        engine.submit(job(f"r{number}", prompt=PROMPT, max_tokens=900))
    await until(lambda: all(len(sink.ids(f"r{n}")) > 20 for n in range(4)), "tokens", WITHIN_S)
    assert engine.load().running == 4
    assert engine.load().kv_pages_used >= 4 * 4
    assert not await engine.reset_prefix_cache()
    started_s, written = time.monotonic(), len(sink.entries)
    for number in range(4):
        engine.abort((f"r{number}", 1))
    load = engine.load()
    assert (load.running, load.waiting, load.kv_pages_used) == (0, 0, 0)
    while not await engine.reset_prefix_cache():  # the block pool itself: no block is in use
        assert time.monotonic() - started_s < 1
    assert time.monotonic() - started_s < 0.1
    assert len(sink.entries) == written


async def test_an_aborted_job_may_come_again_under_its_name_at_once(engine, sink):
    ids, *_ = await whole(engine, sink)
    engine.submit(job(prompt=PROMPT))
    engine.abort(("r1", 1))  # before vLLM has heard of it
    engine.submit(job(prompt=PROMPT))
    await asyncio.sleep(0)
    engine.abort(("r1", 1))  # while vLLM is hearing of it
    engine.submit(job(prompt=PROMPT))
    await finished(sink)
    assert sink.ids() == ids
    assert not engine._backend._llm.output_processor.request_states


async def test_the_load_counts_what_waits_and_goes_back_to_zero(engine, sink):
    for number in range(20):
        engine.submit(job(f"r{number}", prompt=PROMPT, max_tokens=60))
    load = engine.load()
    assert (load.running + load.waiting, load.seqs_max) == (20, 16)
    assert load.queued_tokens == 20 * len(PROMPT)
    await until(lambda: engine.load().running == 16, "a full house", WITHIN_S)
    assert engine.load().waiting == 4
    assert engine.running == 20
    assert engine.free_pages < engine.capabilities.kv_pages_total
    for number in range(20):
        await finished(sink, f"r{number}")
    load = engine.load()
    assert (load.running, load.waiting, load.queued_tokens, load.kv_pages_used) == (0, 0, 0, 0)
    assert load.predicted_step_ms > 0
    assert load.prompt_tokens > load.prefix_hit_tokens > 0


async def test_what_vllm_would_choke_on_is_refused(engine, sink):
    with pytest.raises(EngineRefused, match="too_long"):
        engine.submit(job(prompt=PROMPT * 40))
    with pytest.raises(EngineRefused, match="unsupported"):
        engine.submit(job(prompt=[1, 2, 512]))
    with pytest.raises(EngineRefused, match="unsupported"):
        engine.submit(job(prompt=PROMPT, phase="prefill"))
    assert not engine._jobs


async def test_an_answer_ends_where_the_context_ends(engine, sink):
    prompt = (PROMPT * 40)[:1000]
    engine.submit(job(prompt=prompt, max_tokens=500))
    await finished(sink)
    assert len(sink.ids()) == 24
    assert sink.finish()[:2] == ["length", None]


async def test_a_paused_engine_stands_still_and_goes_on(engine, sink):
    ids, *_ = await whole(engine, sink, max_tokens=300)
    engine.submit(job(prompt=PROMPT, max_tokens=300))
    await until(lambda: len(sink.ids()) > 10, "tokens", WITHIN_S)
    await engine.pause()
    steps, written = engine.watermark, len(sink.ids())
    assert engine.running == 0  # nobody takes it for stuck
    await asyncio.sleep(0.2)
    assert (engine.watermark, len(sink.ids())) == (steps, written)
    await engine.resume()
    await finished(sink)
    assert sink.ids() == ids


async def test_it_works_after_sleep_and_wake(engine, sink):
    ids, *_ = await whole(engine, sink)
    await engine.sleep()
    await engine.wake()
    engine.submit(job(prompt=PROMPT))
    await finished(sink)
    assert sink.ids() == ids


async def test_the_card_is_the_models(engine, tiny_model):
    from components.gateway.rendering import Model  # noqa: PLC0415

    card = engine.model_card()
    assert (card.model, card.context_tokens_max) == ("tiny", 1024)
    assert (card.bos_token_id, card.eos_token_ids) == (1, (2,))
    model = Model.from_card(card)
    assert model.text_ids("Hello, yard\n") == bytes_of("Hello, yard\n")
    assert model.chat_ids([{"role": "user", "content": "Hi"}]) == [3, *bytes_of("Hi"), 4]


async def test_it_learns_what_its_steps_cost(engine, sink):
    for number in range(4):
        prompt = bytes_of(f"{number} " * 100)
        engine.submit(job(f"r{number}", prompt=prompt, max_tokens=60))
    for number in range(4):
        await finished(sink, f"r{number}")
    fit = engine.load().step_fit
    assert fit.samples >= 30
    step_ms = fit.base_ms + fit.per_token_ms * 4 + fit.per_seq_ms * 4
    assert 0.2 < step_ms < 200
