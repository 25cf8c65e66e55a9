"""The engine around vLLM keeps its books, with a vLLM that says what a test wants it to say.

What only a real one can show stands in ``tests/engine``.
"""

import asyncio
import importlib
import os
from collections import defaultdict
from contextlib import asynccontextmanager

import pytest

from components.domain.bodies import Emitted
from components.host.errors import CannotStart
from components.worker.engine import (
    EngineRefused,
    Job,
    JobFailed,
    JobRejected,
    KvArrived,
    KvFailed,
    KvSource,
    Prefilled,
)
from components.worker.main import nested
from components.worker.settings import WorkerSettings
from components.worker.vllm import loading
from components.worker.vllm.backend import (
    BadParameter,
    BadSequence,
    Constraint,
    EngineDied,
    Facts,
    Output,
    Stats,
)
from components.worker.vllm.engine import PROMPT_LOGPROBS_MAX, VllmEngine
from components.worker.vllm.handoff import Relay
from components.worker.vllm.loading import VllmModel, environment, load_async_llm
from schemas.body import SamplingParameters
from schemas.engine import StepTimeFit
from schemas.fleet import ModelCard
from tests.support.nats import until

PROMPT = tuple(range(100, 140))
EOS = 2


class Letters:
    """A text that is one letter per id; the stop text ``"!"`` is id 33."""

    def __init__(self):
        self.written, self.said = "", 0

    def take(self, token_id, *, is_stop=False):
        if token_id == 33:
            return "!"
        self.written += "" if is_stop else chr(token_id)
        return None

    def read(self, *, finished=False):
        new, self.said = self.written[self.said :], len(self.written)
        return new


class Shouts:
    """A parser to which capitals are calls, one each, and everything else is content."""

    def __init__(self):
        self.has_called, self.heard = False, []

    def take(self, token_ids, text, *, finished):
        self.heard.append((tuple(token_ids), text, finished))
        self.has_called |= text.isupper()
        if not text:
            return []
        return [{"tool_calls": [{"index": 0}]} if text.isupper() else {"content": text}]


class Script:
    """How ``ScriptedBackend`` reads a job."""

    def __init__(self, constraint=None, *, parses=False):
        self.constraint, self.parses, self.parsers = constraint, parses, {}

    def text(self):
        return Letters()

    def parser(self, choice):
        return self.parsers.setdefault(choice, Shouts()) if self.parses else None


class ScriptedBackend:
    """Says what is put into its queues; ``gone`` are the sequences that were aborted.

    ``readings`` are given to jobs by their request ids; an exception is raised.
    """

    def __init__(self, *, has_connector=False):
        card = ModelCard(model="m", created_s=1, context_tokens_max=100, eos_token_ids=(EOS, 9))
        self.facts = Facts(card, 512, 100, 4, 2048, 64, 32, 1024, has_connector)
        self.stats = Stats()
        self.step_fit: StepTimeFit | None = None
        self.is_dead = False
        self.tasks, self.gone, self.stopped = {}, [], 0
        self.control, self.changes = [], []
        self.readings, self.admitted, self.gate = {}, [], asyncio.Event()
        self.queues = defaultdict(asyncio.Queue)

    async def attach(self):
        pass

    def stop(self):
        self.stopped += 1

    def reading(self, job):
        reading = self.readings.get(job.request_id, Script())
        if isinstance(reading, Exception):
            raise reading
        return reading

    async def admit(self, sequence):
        self.admitted.append(sequence.name)
        await self.gate.wait()

    async def generate(self, sequence):
        self.tasks[sequence.name] = sequence
        while True:
            said = await self.queues[sequence.name].get()
            if isinstance(said, Exception):
                raise said
            yield said
            if said.finish is not None:
                return

    async def abort(self, names):
        self.gone += names
        for name in names:
            self.queues[name].put_nowait(Output([], None, "abort", None, 0))

    async def page_changes(self):
        for change in self.changes:
            yield change

    async def pause(self, *, keep):
        self.control.append(("pause", keep))

    async def resume(self):
        self.control.append(("resume",))

    async def sleep(self, level):
        self.control.append(("sleep", level))

    async def wake(self):
        self.control.append(("wake",))

    async def reset_prefix_cache(self):
        return True

    def name(self, request_id="r1", choice="0"):
        [name] = [n for n in self.tasks if n.startswith(f"{request_id}/1/{choice}/")]
        return name

    def say(self, ids, finish=None, *, request_id="r1", choice="0", **more):
        given = {"logprobs": None, "stop_token_id": None, "cached_tokens": 0, **more}
        output = Output(ids, finish=finish, **given)
        self.queues[self.name(request_id, choice)].put_nowait(output)


class Releases(Relay):
    """A relay that can free pages, and says of which jobs it did."""

    def __init__(self):
        self.released = []

    def release(self, key):
        self.released.append(key)


@asynccontextmanager
async def running(exchange=None, **given):
    backend, calls = ScriptedBackend(**given), []
    faults: list[BaseException] = []
    engine = VllmEngine(lambda: backend, exchange or Relay(), on_fault=faults.append)
    await engine.start(lambda entries, events: calls.append((entries, events)))
    try:
        yield engine, backend, calls
    finally:
        await engine.stop()
    assert not faults
    assert backend.stopped == 1


def job(request_id="r1", phase="aggregated", emitted=None, kv=None, **sampling):
    given = {c: Emitted(tuple(ids), done) for c, (ids, done) in (emitted or {}).items()}
    parameters = SamplingParameters(**{"max_tokens": 10, **sampling})
    return Job(request_id, 1, phase, PROMPT, parameters, given, (), kv)


def entries_of(calls):
    return [entry for entries, _ in calls for entry in entries]


def events_of(calls):
    return [event for _, events in calls for event in events]


async def taken(backend, count=1):
    await until(lambda: len(backend.tasks) == count)


async def test_ids_text_and_end_come_out_as_entries():
    async with running() as (engine, backend, calls):
        engine.submit(job())
        await taken(backend)
        backend.say([65], cached_tokens=32, logprobs=[[[65, -0.5, "A"]]])
        await until(lambda: bool(calls))
        backend.say([66, EOS], "stop", cached_tokens=32)
        await until(lambda: len(calls) == 2)
        assert entries_of(calls) == [
            ("r1", 1, 0, 0, [65], "A", {"logprobs": [[[65, -0.5, "A"]]]}, None),
            ("r1", 1, 0, 1, [66, EOS], "B", None, ["stop", None, 32]),
        ]
        assert not engine._jobs


async def test_what_comes_in_one_turn_leaves_in_one_call():
    async with running() as (engine, backend, calls):
        for number in range(5):
            engine.submit(job(f"r{number}"))
        await taken(backend, 5)
        for number in range(5):
            backend.say([65], request_id=f"r{number}")
        await until(lambda: bool(calls))
        assert [len(entries) for entries, _ in calls] == [5]


async def test_a_stop_text_ends_a_sequence_that_vllm_would_go_on_with():
    async with running() as (engine, backend, calls):
        engine.submit(job(stop=("!",)))
        await taken(backend)
        backend.say([65, 33, 66])
        await until(lambda: backend.gone == [backend.name()])
        assert entries_of(calls) == [("r1", 1, 0, 0, [65, 33], "A", None, ["stop", "!", 0])]


async def test_a_continuation_is_told_what_is_left():
    async with running() as (engine, backend, calls):
        engine.submit(job(emitted={0: ((65, 66, 67), False)}, min_tokens=5, seed=4))
        await taken(backend)
        [task] = backend.tasks.values()
        assert tuple(task.prompt) == (*PROMPT, 65, 66, 67)
        assert (task.max_tokens, task.min_tokens, task.emitted) == (7, 2, [65, 66, 67])
        assert task.seed != 4  # not the same random numbers once more
        backend.say([68])
        await until(lambda: bool(calls))
        assert entries_of(calls) == [("r1", 1, 0, 3, [68], "D", None, None)]
        engine.abort(("r1", 1))


@pytest.mark.parametrize(
    ("ids", "sampling", "end"),
    [
        ((65,) * 10, {}, ["length", None, 0]),
        ((65, EOS), {}, ["stop", None, 0]),
        ((65, 9), {}, ["stop", 9, 0]),
        ((65, 77), {"stop_token_ids": (77,)}, ["stop", 77, 0]),
        ((65, 33), {"stop": ("!",)}, ["stop", "!", 0]),
    ],
)
async def test_a_choice_that_was_complete_never_reaches_vllm(ids, sampling, end):
    async with running() as (engine, backend, calls):
        engine.submit(job(emitted={0: (ids, False)}, **sampling))
        await until(lambda: bool(calls))
        assert entries_of(calls) == [("r1", 1, 0, len(ids), [], "", None, end)]
        assert not backend.tasks
        assert not engine._jobs


async def test_an_end_that_does_not_count_is_none():
    async with running() as (engine, backend, _):
        engine.submit(job("eos", emitted={0: ((65, EOS), False)}, ignore_eos=True))
        engine.submit(job("early", emitted={0: ((65, EOS), False)}, min_tokens=2))
        await taken(backend, 2)
        engine.abort(("eos", 1))
        engine.abort(("early", 1))


async def test_choices_are_sequences_with_seeds_of_their_own():
    async with running() as (engine, backend, _):
        engine.submit(job(n=3, seed=7, emitted={1: ((65,), True)}))
        await taken(backend, 2)
        assert [task.seed for task in backend.tasks.values()] == [7, 9]
        assert (engine.running, engine.load().waiting) == (2, 2)
        engine.abort(("r1", 1))
        await until(lambda: len(backend.gone) == 2)


async def test_after_an_abort_nothing_more_is_heard():
    async with running() as (engine, backend, calls):
        engine.submit(job())
        await taken(backend)
        backend.say([65])
        await asyncio.sleep(0)
        engine.abort(("r1", 1))
        backend.say([66])
        await until(lambda: backend.gone == [backend.name()])
        engine.abort(("r1", 1))
        assert calls == []
        assert (engine.running, engine.load().kv_pages_used) == (0, 0)


async def test_what_vllm_refuses_or_drops_fails_the_job():
    async with running() as (engine, backend, calls):
        engine.submit(job("refused"))
        engine.submit(job("dropped"))
        await taken(backend, 2)
        backend.queues[backend.name("refused")].put_nowait(BadSequence("no such thing"))
        backend.say([], "abort", request_id="dropped")
        await until(lambda: len(events_of(calls)) == 2)
        assert {type(event) for event in events_of(calls)} == {JobFailed}
        assert {event.key for event in events_of(calls)} == {("refused", 1), ("dropped", 1)}
        assert not engine._jobs


JSON = Constraint("json_object", "", "response_format")


async def test_what_no_vllm_can_honour_is_rejected():
    async with running() as (engine, backend, calls):
        backend.readings["tools"] = BadParameter("tools", "not a list")
        engine.submit(job("tools"))
        engine.submit(job("late"))
        engine.submit(job("much", prompt_logprobs=20, n=PROMPT_LOGPROBS_MAX // 21 // 40 + 1))
        await taken(backend)
        backend.queues[backend.name("late")].put_nowait(BadParameter("logit_bias"))
        await until(lambda: len(events_of(calls)) == 3)
        assert sorted(events_of(calls), key=lambda event: event.key) == [
            JobRejected(("late", 1), "logit_bias"),
            JobRejected(("much", 1), "prompt_logprobs"),
            JobRejected(("tools", 1), "tools"),
        ]
        assert not engine._jobs
        assert list(backend.tasks) == [backend.name("late")]


async def test_a_constrained_sequence_waits_until_vllm_may_have_it():
    async with running() as (engine, backend, _):
        backend.readings["r1"] = backend.readings["r2"] = Script(JSON)
        engine.submit(job())
        engine.submit(job("r2"))
        await until(lambda: len(backend.admitted) == 2)
        assert not backend.tasks
        engine.abort(("r2", 1))  # vLLM never hears of it
        backend.gate.set()
        await taken(backend)
        assert backend.tasks[backend.name()].constraint == JSON
        engine.abort(("r1", 1))


async def test_a_prefill_is_never_constrained():
    async with running(has_connector=True) as (engine, backend, _):
        backend.readings["r1"] = Script(JSON)
        engine.submit(job(phase="prefill", seed=4, logit_bias=((65, 1.0),)))
        await taken(backend)
        [task] = backend.tasks.values()
        assert (task.constraint, task.sampling.logit_bias, task.seed) == (None, (), None)
        assert not backend.admitted
        engine.abort(("r1", 1))


async def test_a_parser_reads_id_by_id_and_its_deltas_leave_with_the_step():
    async with running() as (engine, backend, calls):
        backend.readings["r1"] = script = Script(parses=True)
        engine.submit(job())
        await taken(backend)
        backend.say([97, 66])
        await until(lambda: bool(calls))
        backend.say([EOS], "stop")
        await until(lambda: len(calls) == 2)
        said = [{"content": "a"}, {"tool_calls": [{"index": 0}]}]
        assert entries_of(calls) == [
            ("r1", 1, 0, 0, [97, 66], "aB", {"deltas": said}, None),
            ("r1", 1, 0, 2, [EOS], "", {"deltas": []}, ["tool_calls", None, 0]),
        ]
        assert script.parsers[0].heard == [
            ((97,), "a", False),
            ((66,), "B", False),
            ((EOS,), "", True),
        ]


async def test_a_continuation_parses_what_was_emitted_in_silence():
    async with running() as (engine, backend, calls):
        backend.readings["r1"] = backend.readings["r2"] = Script(parses=True)
        engine.submit(job(emitted={0: ((97, 66), False)}))
        await taken(backend)
        backend.say([99, 33])
        await until(lambda: bool(calls))
        # It had called before the seam.
        assert entries_of(calls) == [
            ("r1", 1, 0, 2, [99, 33], "c", {"deltas": [{"content": "c"}]}, ["tool_calls", "!", 0])
        ]
        calls.clear()
        engine.submit(job("r2", emitted={0: ((66, EOS), False)}))
        await until(lambda: bool(calls))
        assert entries_of(calls) == [
            ("r2", 1, 0, 2, [], "", {"deltas": []}, ["tool_calls", None, 0])
        ]


async def test_an_end_by_length_stays_one_whatever_was_called():
    async with running() as (engine, backend, calls):
        backend.readings["r1"] = Script(parses=True)
        engine.submit(job())
        await taken(backend)
        backend.say([66], "length")
        await until(lambda: bool(calls))
        assert entries_of(calls)[0][7] == ["length", None, 0]


async def test_prompt_logprobs_leave_with_the_first_ids():
    async with running() as (engine, backend, calls):
        engine.submit(job(prompt_logprobs=0))
        await taken(backend)
        rows = [None, [[101, -0.5, "e"]]]
        backend.say([65], prompt_logprobs=rows)
        await until(lambda: bool(calls))
        assert entries_of(calls)[0][6] == {"prompt_logprobs": rows}
        engine.abort(("r1", 1))


async def test_a_prefill_holds_its_pages_until_they_are_released():
    async with running(has_connector=True) as (engine, backend, calls):
        engine.submit(job(phase="prefill", emitted={0: ((65,), False)}))
        await taken(backend)
        [task] = backend.tasks.values()
        assert (task.max_tokens, task.kv["do_remote_decode"], len(task.prompt)) == (1, True, 41)
        returned = {"remote_block_ids": [[1, 2]], "remote_host": None}
        backend.say([5], "length", choice="kv", cached_tokens=32, kv=returned)
        await until(lambda: bool(calls))
        [prefilled] = events_of(calls)
        assert isinstance(prefilled, Prefilled)
        assert (prefilled.tokens, prefilled.pages, prefilled.bytes_total) == (41, 3, 41 * 1024)
        assert prefilled.cached_tokens == 32
        assert engine.load().kv_pages_used == 3
        engine.release(("r1", 1))
        engine.release(("r1", 1))
        assert engine.load().kv_pages_used == 0
        # What came back from vLLM is what the other side's vLLM gets.
        source = KvSource("t1", "prefill-0", 41, 1000, prefilled.params)
        assert Relay().decode_params(job(), source) == returned


async def test_an_aborted_prefill_holds_nothing_even_if_vllm_had_ended_it_before():
    exchange = Releases()
    async with running(exchange, has_connector=True) as (engine, backend, calls):
        engine.submit(job(phase="prefill"))
        await taken(backend)
        backend.say([5], "length", choice="kv", kv={"remote_block_ids": [[1, 2]]})
        engine.abort(("r1", 1))  # the end was said, and not heard yet
        assert exchange.released == [("r1", 1)]
        engine.release(("r1", 1))
        engine.submit(job("r2"))
        engine.abort(("r2", 1))
        await until(lambda: bool(backend.gone))
        assert exchange.released == [("r1", 1)], "the second one has nothing to release"
        assert calls == []


async def test_a_decode_says_that_its_kv_is_here_before_its_first_token():
    async with running(has_connector=True) as (engine, backend, calls):
        source = KvSource("t1", "prefill-0", 40, 1000, {})
        engine.submit(job(phase="decode", kv=source, n=2))
        await taken(backend)
        assert (engine.running, engine.load().waiting) == (0, 2)  # no step would move it on
        backend.say([65])
        await taken(backend, 2)  # the other choice finds the prompt in the cache
        assert backend.tasks[backend.name("r1", "1")].kv is None
        assert engine.running == 2
        assert calls == [
            ([], [KvArrived(("r1", 1), 1000)]),
            ([("r1", 1, 0, 0, [65], "A", None, None)], []),
        ]
        engine.abort(("r1", 1))


async def test_kv_that_cannot_be_loaded_is_said_and_the_job_may_come_again():
    async with running(has_connector=True) as (engine, backend, calls):
        engine.submit(job(phase="decode", kv=KvSource("t1", "prefill-0", 40, 1000, {})))
        await taken(backend)
        backend.say([], "error")
        await until(lambda: bool(calls))
        assert events_of(calls) == [KvFailed(("r1", 1), "error")]
        engine.submit(job())
        await taken(backend, 2)
        engine.abort(("r1", 1))


async def test_an_engine_that_stands_still_on_purpose_is_not_taken_for_stuck():
    async with running() as (engine, backend, _):
        engine.submit(job())
        await taken(backend)
        await engine.pause()
        assert engine.running == 0
        await engine.resume()
        assert engine.running == 1
        await engine.sleep(2)
        assert engine.running == 0
        await engine.wake()
        assert await engine.reset_prefix_cache()
        assert backend.control == [("pause", True), ("resume",), ("sleep", 2), ("wake",)]
        engine.abort(("r1", 1))


async def test_what_vllm_would_choke_on_is_refused():
    async with running() as (engine, _, _):
        for wrong in (
            Job("r1", 1, "aggregated", (1,) * 100, SamplingParameters()),
            Job("r1", 1, "aggregated", (1, 512), SamplingParameters()),
            job(phase="prefill"),
        ):
            with pytest.raises(EngineRefused):
                engine.submit(wrong)
        assert not engine._jobs


async def test_the_death_of_vllm_is_a_fault():
    backend = ScriptedBackend()
    faults: list[BaseException] = []
    engine = VllmEngine(lambda: backend, Relay(), on_fault=faults.append)
    await engine.start(lambda entries, events: None)
    engine.submit(job())
    await taken(backend)
    backend.queues[backend.name()].put_nowait(EngineDied("gone"))
    backend.is_dead = True
    await until(lambda: bool(faults))
    await engine.stop()
    assert [type(fault) for fault in faults] == [EngineDied]


async def test_an_end_while_it_loads_is_not_forgotten():
    backend, loading_now, go_on = ScriptedBackend(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def load():
        loop.call_soon_threadsafe(loading_now.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return backend

    engine = VllmEngine(load, Relay(), on_fault=lambda error: None)
    starting = asyncio.create_task(engine.start(lambda entries, events: None))
    await loading_now.wait()
    starting.cancel()
    await engine.stop()
    go_on.set()
    await until(lambda: backend.stopped == 1)


async def test_where_no_vllm_is_installed_that_is_said(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'vllm'")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(CannotStart, match="not installed"):
        load_async_llm(VllmModel("m", "m", 1, {}, {}))


def test_a_local_model_needs_no_network_and_one_process_less(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "is_for_cpus", lambda: True)
    local = environment(VllmModel("m", str(tmp_path), 1, {}, {}))
    assert local["HF_HUB_OFFLINE"] == "1"
    assert local["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    two_ranks = environment(VllmModel("m", "org/model", 1, {"tensor_parallel_size": 2}, {}))
    assert "HF_HUB_OFFLINE" not in two_ranks
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in two_ranks


def test_engine_arguments_pass_through_the_command_line():
    told = nested(
        {
            "engine": "vllm",
            "engine_args.max_model_len": "1024",
            "engine_args.dtype": "float32",
            "kv_transfer.kv_connector": "NixlConnector",
            "host.instance": "prefill-0",
        }
    )
    assert told["engine_args"] == {"max_model_len": 1024, "dtype": "float32"}
    assert told["host.instance"] == "prefill-0"
    settings = WorkerSettings.model_validate(
        {"engine": "vllm", "role": "prefill", "kv_transfer": told["kv_transfer"]}
    )
    assert settings.kv_transfer_config("prefill-0-7") == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
        "engine_id": "prefill-0-7",
    }


async def test_the_load_says_what_steps_cost_and_what_waits_by_it():
    async with running() as (engine, backend, _):
        assert engine.load().step_fit is None
        fit = StepTimeFit(
            base_ms=5, per_token_ms=0.01, per_seq_ms=0, per_context_token_ms=0, samples=9, error=0.1
        )
        backend.step_fit = fit
        backend.stats = Stats(steps=3, step_ms=1.0)
        engine.submit(job())
        load = engine.load()
        assert load.step_fit == fit
        assert load.queued_tokens == len(PROMPT)
        assert load.predicted_wait_ms == 5 + 0.01 * backend.facts.step_tokens_max
        assert load.predicted_step_ms == 1.0
        engine.abort(("r1", 1))
