"""The engine behind an OpenAI-compatible server: what it asks, what it makes of every answer."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import pytest

from components.domain.bodies import Emitted
from components.host.clock import SystemClock
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
from components.worker.openai_http.engine import OpenAIEngine
from components.worker.openai_http.settings import OpenAISettings, ServedModel
from schemas.body import OutputParsing, SamplingParameters, StructuredOutput
from schemas.fleet import HeartbeatSent
from tests.support.nats import until
from tests.support.openai_server import Fault, OpenAIServer
from tests.support.sglang_server import logprob, told
from tests.support.sink import Sink
from tests.support.word_tokenizer import write_word_tokenizer

PROMPT = tuple(range(300, 320))
FAST: dict[str, Any] = {
    "start_wait_s": 5.0,
    "poll_s": 0.02,
    "poll_timeout_s": 0.5,
    "connect_timeout_s": 1.0,
}
CHAT = '[{"role":"user","content":"hi"}]'


@pytest.fixture
def tokenizer_dir(tmp_path):
    """Ids have texts of their own here: what the server writes is not needed."""
    return write_word_tokenizer(tmp_path)


class Agent(Sink):
    """An engine, all that it said, and its server."""

    def __init__(self, server, settings, faults):
        self.server = server
        model = ServedModel("m", 1, server.url, 1000, 8, 2048, None)
        self.engine = OpenAIEngine(model, settings, clock=SystemClock(), on_fault=faults.append)
        super().__init__()

    def submit(self, name="r1", *, attempt=1, phase="aggregated", prompt=PROMPT, kv=None,
               emitted=None, peer=None, **sampling):  # fmt: skip
        given = {c: Emitted(tuple(ids)) for c, ids in (emitted or {}).items()}
        parameters = SamplingParameters(**{"max_tokens": 6, **sampling})
        job = Job(name, attempt, phase, tuple(prompt), parameters, given, (), kv, peer=peer)
        self.engine.submit(job)
        return job

    async def finished(self, name="r1", choice=0):
        await until(lambda: bool(self.finish(name, choice) or self.events), f"the end of {name}")
        assert not self.events, self.events
        return self.said(name, choice)

    async def run(self, name="r1", **given):
        self.submit(name, **given)
        return await self.finished(name)

    async def event(self):
        await until(lambda: bool(self.events), "an event")
        [event] = self.events
        self.events.clear()
        return event

    async def idle(self):
        def empty():
            load = self.engine.load()
            return not (load.running or load.waiting or load.queued_tokens or self.server.running)

        await until(empty, "nothing is held")


@pytest.fixture
def agent(tokenizer_dir):
    @asynccontextmanager
    async def made(*, ids=True, server=None, **given):
        server = server or OpenAIServer()
        await server.start()
        faults: list[BaseException] = []
        settings = OpenAISettings(
            **{**FAST, "tokenizer_dir": str(tokenizer_dir) if ids else "", **given}
        )
        made = Agent(server, settings, faults)
        try:
            await made.engine.start(made)
            yield made
            await made.idle()
        finally:
            await made.engine.stop()
            await server.stop()
        assert faults == []
        assert server.violations == []

    return made


# What it asks and what comes of it


async def test_ids_come_as_the_server_made_them_and_their_text_is_made_here(agent):
    async with agent() as here:
        ids, text = await here.run()
        assert ids == told(PROMPT, 6)[0]
        assert text.split() == [f"t{i}" for i in ids]
        assert here.finish() == ["length", None, 3]
        [request] = here.server.requests
        assert request["prompt"] == list(PROMPT)
        assert request["return_token_ids"] is True


@pytest.mark.parametrize("cut", [None, 0, 1, 7])
async def test_however_the_bytes_come_the_tokens_are_the_same(agent, cut):
    async with agent() as here:
        here.server.cut = cut
        assert (await here.run(max_tokens=4))[0] == told(PROMPT, 4)[0]


@pytest.mark.parametrize("cut", range(1, 6))
async def test_a_stream_goes_on_behind_what_was_emitted(agent, cut):
    whole = told(PROMPT, 6)[0]
    async with agent() as here:
        ids, _ = await here.run(emitted={0: whole[:cut]})
        assert ids == whole[cut:]
        assert here.of()[0][3] == cut
        assert here.server.requests[0]["max_tokens"] == 6 - cut


async def test_what_has_ended_already_only_ends(agent):
    whole = told(PROMPT, 6)[0]
    async with agent() as here:
        assert (await here.run(emitted={0: whole})) == ([], "")
        assert here.finish() == ["length", None, 0]
        assert here.server.requests == []


async def test_choices_are_requests_of_their_own_with_seeds_of_their_own(agent):
    async with agent() as here:
        here.submit(n=3, seed=5, temperature=1.0)
        for choice in range(3):
            assert (await here.finished("r1", choice))[0] == told(PROMPT, 6)[0]
        assert len({r["seed"] for r in here.server.requests}) == 3


async def test_a_stop_text_is_found_here_and_the_server_is_left(agent):
    stop = f"t{told(PROMPT, 3)[0][2]}"
    async with agent(server=OpenAIServer(itl_s=0.005)) as here:
        ids, text = await here.run(max_tokens=200, stop=(stop,))
        assert ids == told(PROMPT, 3)[0]
        assert stop not in text
        assert here.finish()[:2] == ["stop", stop]
        await until(lambda: here.server.dropped == 1, "the server was left")


async def test_a_stop_id_ends_it_with_its_name(agent):
    third = told(PROMPT, 3)[0][2]
    async with agent() as here:
        ids, _ = await here.run(max_tokens=200, stop_token_ids=(third,))
        assert ids == told(PROMPT, 3)[0]
        assert here.finish()[:2] == ["stop", third]


async def test_logprobs_name_ids_and_the_likeliest(agent):
    async with agent() as here:
        await here.run(logprobs=1, max_tokens=2)
        ids = here.said()[0]
        rows = [row for e in here.of() if e[6] for row in e[6]["logprobs"]]
        assert [row[0][:2] for row in rows] == [[i, logprob(i)] for i in ids]
        assert all(len(row) == 2 for row in rows)


async def test_prompt_logprobs_come_in_one_piece_with_the_first_entry(agent):
    async with agent() as here:
        await here.run(prompt_logprobs=0, max_tokens=2)
        [prompt] = [e[6]["prompt_logprobs"] for e in here.of() if e[6]]
        assert prompt[0] is None
        assert [row[0][0] for row in prompt[1:]] == list(PROMPT[1:])
        assert here.server.requests[0]["stream"] is False


async def test_a_server_of_texts_gets_texts_and_its_stream_is_opaque(agent):
    async with agent(ids=False, server=OpenAIServer(vllm=False)) as here:
        ids, text = await here.run(prompt=b"Which track?", stop=("never",))
        assert len(ids) == 6
        assert set(ids) == {0}
        assert text == told([7], 6)[1]
        assert all(e[6] and e[6]["opaque"] for e in here.of() if e[4])
        assert here.server.requests[0]["prompt"] == "Which track?"
        assert here.server.requests[0]["stop"] == ["never"]
        assert "renders" in here.engine.model_card().features


async def test_a_chat_that_only_the_server_can_render_goes_as_messages_with_its_tools(agent):
    tools = '[{"type":"function","function":{"name":"f"}}]'
    async with agent(ids=False, server=OpenAIServer(vllm=False)) as here:
        parsing = OutputParsing(tools=tools, tool_choice="=f")
        _, text = await here.run(prompt=b"x", chat=CHAT, parsing=parsing)
        assert text == told([7], 6)[1]
        [request] = here.server.requests
        assert request["messages"] == json.loads(CHAT)
        assert request["tool_choice"] == {"type": "function", "function": {"name": "f"}}
        assert [e[6]["deltas"] for e in here.of() if e[6] and "deltas" in e[6]]


@pytest.mark.parametrize(
    ("vllm", "kind", "value", "field", "told_"),
    [
        (True, "regex", "a+", "structured_outputs", {"regex": "a+"}),
        (True, "choice", '["a"]', "structured_outputs", {"choice": ["a"]}),
        (False, "json_object", "", "response_format", {"type": "json_object"}),
    ],
)
async def test_a_constraint_is_told_in_the_server_s_words(agent, vllm, kind, value, field, told_):
    async with agent(ids=vllm, server=OpenAIServer(vllm=vllm)) as here:
        structured = StructuredOutput(kind=kind, value=value)
        await here.run(prompt=PROMPT if vllm else b"x", structured=structured)
        assert here.server.requests[0][field] == told_
        assert all(e[6]["opaque"] for e in here.of() if e[4])


async def test_a_key_goes_with_every_request(agent, tmp_path):
    (tmp_path / "key").write_text("s3cret\n")
    server = OpenAIServer(api_key="s3cret")
    async with agent(server=server, api_key_file=str(tmp_path / "key")) as here:
        assert (await here.run())[0]
        assert "s3cret" not in repr(here.entries)


# What goes wrong there


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500),
        Fault("status", status=503, error={"error": "busy"}),
        Fault("status", status=429),
        Fault("status", status=401),
        Fault("reset"),
        Fault("cut", after=3),
        Fault("garbage", after=2),
        Fault("error_event", after=2),
        Fault("finish", after=2, error="error"),
        Fault("finish", after=2, error="abort"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.error}",
)
async def test_a_fault_of_the_server_loses_the_job_and_the_next_one_is_served(agent, fault):
    async with agent() as here:
        here.server.faults = [fault]
        here.submit()
        failed = await here.event()
        assert isinstance(failed, JobFailed)
        assert here.finish() is None
        emitted = here.said()[0]
        assert emitted == told(PROMPT, 6)[0][: len(emitted)]
        whole = await here.run("r2", emitted={0: emitted} if emitted else None)
        assert [*emitted, *whole[0]] == told(PROMPT, 6)[0]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_request_that_the_server_refuses_for_what_is_in_it_is_rejected_with_the_field(
    agent, status
):
    async with agent() as here:
        error = {"error": {"message": "too hot", "param": "temperature"}}
        here.server.faults = [Fault("status", status=status, error=error)]
        here.submit()
        rejected = await here.event()
        assert isinstance(rejected, JobRejected)
        assert rejected.param == "temperature"


async def test_a_stream_on_which_nothing_comes_is_given_up(agent):
    async with agent(silence_s=0.2) as here:
        here.server.faults = [Fault("hang", after=1)]
        here.submit()
        assert isinstance(await here.event(), JobFailed)


async def test_a_server_that_gives_no_ids_is_opaque_and_takes_nothing_up_in_the_middle(agent):
    async with agent() as here:
        here.server.faults = [Fault("no_ids"), Fault("no_ids")]
        ids, text = await here.run()
        assert set(ids) == {0}
        assert text == told(PROMPT, 6)[1]
        here.submit("r2", emitted={0: [5, 6]})
        assert isinstance(await here.event(), JobFailed)


async def test_an_abort_closes_the_connection_and_nothing_more_is_said(agent):
    async with agent(server=OpenAIServer(itl_s=0.01)) as here:
        here.submit(max_tokens=500, n=2)
        await until(lambda: len(here.said()[0]) > 2, "it runs")
        here.engine.abort(("r1", 1))
        said = len(here.entries)
        await until(lambda: here.server.running == 0, "the server was left")
        assert len(here.entries) == said
        assert here.server.dropped == 2
        assert here.events == []


async def test_a_server_that_dies_loses_its_jobs_and_is_away_until_it_is_back(agent):
    async with agent(server=OpenAIServer(itl_s=0.01)) as here:
        here.submit(max_tokens=500)
        await until(lambda: len(here.said()[0]) > 2, "it runs")
        port = here.server.port
        await here.server.stop()
        assert isinstance(await here.event(), JobFailed)
        await until(lambda: here.engine.is_away, "it is away")
        assert here.engine.heartbeat()["state"] == "degraded"
        with pytest.raises(EngineRefused) as refused:
            here.submit("r2")
        assert refused.value.nack == "draining"
        await here.server.start(port)
        await until(lambda: not here.engine.is_away, "it is back")
        assert "state" not in here.engine.heartbeat()
        assert (await here.run("r3"))[0] == told(PROMPT, 6)[0]


async def test_a_server_that_is_unwell_for_some_looks_counts_as_gone(agent):
    async with agent() as here:
        here.server.healthy = False
        await until(lambda: here.engine.is_away, "it is away")
        here.server.healthy = True
        await until(lambda: not here.engine.is_away, "it is back")


async def test_it_starts_when_the_server_does_and_not_before(tokenizer_dir):
    server = OpenAIServer()
    await server.start()
    port = server.port
    await server.stop()
    made = Agent(server, OpenAISettings(**FAST), [])
    starting = asyncio.ensure_future(made.engine.start(made))
    await asyncio.sleep(0.05)
    assert not starting.done()
    await server.start(port)
    await starting
    await made.engine.stop()
    await server.stop()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "other"}, None),
        ({"api_key": "x"}, "wants another key"),
    ],
)
async def test_a_server_that_is_not_the_one_is_said_at_the_start(given, says):
    server = OpenAIServer(**given)
    await server.start()
    made = Agent(server, OpenAISettings(**FAST), [])
    try:
        if says is None:  # the only model there is, under its own name
            await made.engine.start(made)
            assert (await made.run(prompt=b"x"))[0]
            assert server.requests[0]["model"] == "other"
        else:
            with pytest.raises(CannotStart, match=says):
                await made.engine.start(made)
    finally:
        await made.engine.stop()
        await server.stop()


async def test_more_requests_than_it_may_open_are_refused(agent):
    async with agent(connections_max=2, server=OpenAIServer(itl_s=0.01)) as here:
        here.submit(n=2, max_tokens=20)
        with pytest.raises(EngineRefused) as refused:
            here.submit("r2")
        assert refused.value.nack == "full"
        await here.finished()
        await here.finished("r1", 1)


async def test_load_is_what_is_open_here_and_what_others_do_there(agent):
    async with agent(server=OpenAIServer(itl_s=0.01)) as here:
        assert here.engine.load().kv_pages_total == 640 * 16 // 16
        here.server.running = 5  # somebody else's
        await until(lambda: here.engine.load().running >= 5, "the others are seen")
        here.server.running = 0
        here.submit(max_tokens=30)
        await until(lambda: here.engine.load().running >= 1, "ours is seen")
        before = here.engine.watermark
        await here.finished()
        assert here.engine.watermark > before


async def test_operators_reach_the_server(agent):
    async with agent() as here:
        await here.engine.pause(keep=True)
        assert here.engine.running == 0
        await here.engine.resume()
        await here.engine.sleep(1)
        await here.engine.wake()
        assert await here.engine.reset_prefix_cache()
        assert [path.partition("?")[0] for path in here.server.controls] == [
            "/pause", "/resume", "/sleep", "/wake_up", "/reset_prefix_cache",
        ]  # fmt: skip


async def test_what_a_server_cannot_do_is_said(agent, monkeypatch):
    async with agent() as here:
        here.server.api_key = "changed"
        with pytest.raises(EngineRefused, match="401"):
            await here.engine.pause(keep=True)
        here.server.api_key = ""
        await until(lambda: not here.engine.is_away, "it is well")


# KV from one server to another


async def test_params_of_p_s_answer_are_d_s_word_for_word(agent):
    async with agent(handover="params") as p, agent(handover="params") as d:
        p.submit(phase="prefill")
        offered = await p.event()
        assert isinstance(offered, Prefilled)
        [asked] = p.server.requests
        assert asked["max_tokens"] == 1
        assert asked["stream"] is False
        assert asked["kv_transfer_params"]["do_remote_decode"] is True
        source = source_of(offered.params)
        d.submit(phase="decode", kv=source, n=2)
        assert isinstance(await d.event(), KvArrived)
        assert (await d.finished())[0] == told(PROMPT, 6)[0]
        await d.finished("r1", 1)
        assert d.server.requests[0]["kv_transfer_params"] == p.server.kv_params
        assert "kv_transfer_params" not in d.server.requests[1], "found in the cache"
        p.engine.release(("r1", 1))


async def test_kv_that_does_not_come_fails_the_move_and_not_the_request(agent):
    async with agent(handover="params") as d:
        d.server.faults = [Fault("status", status=500)]
        d.submit(phase="decode", kv=source_of({"kv_transfer_params": "{}"}))
        assert isinstance(await d.event(), KvFailed)


async def test_both_requests_carry_one_id_that_names_both_connectors(agent):
    by_id = {"handover": "p2p_nccl"}
    async with (
        agent(**by_id, kv_address="10.0.0.1:21001") as p,
        agent(**by_id, kv_address="10.0.0.2:22001") as d,
    ):
        with pytest.raises(EngineRefused, match="not known yet"):
            p.submit(phase="prefill", peer="decode-0")
        p.engine.on_heartbeat(beat("decode-0", "10.0.0.2:22001"))
        p.submit(phase="prefill", peer="decode-0")
        offered = await p.event()
        d.submit(phase="decode", kv=source_of(offered.params))
        assert isinstance(await d.event(), KvArrived)
        await d.finished()
        names = {server.headers[0]["x-request-id"] for server in (p.server, d.server)}
        [name] = names
        assert name.startswith("___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_")
        p.engine.release(("r1", 1))


async def test_a_server_that_waits_for_kv_by_itself_may_be_asked_while_p_still_computes(agent):
    """As with the seed's PUT_ASYNC: the offer goes out when P begins."""
    server = OpenAIServer()
    server.hold.clear()
    settings = {"handover": "p2p_nccl", "kv_address": "10.0.0.1:21001", "overlap": True}
    async with agent(server=server, **settings) as p:
        p.engine.on_heartbeat(beat("decode-0", "10.0.0.2:22001"))
        p.submit(phase="prefill", peer="decode-0")
        assert isinstance(await p.event(), Prefilled)
        await until(lambda: server.running == 1, "P computes")
        server.hold.set()
        await until(lambda: server.running == 0, "P is done")
        p.engine.release(("r1", 1))
        assert p.events == []


async def test_without_a_handover_it_does_both_halves_only(agent):
    async with agent() as here:
        with pytest.raises(EngineRefused) as refused:
            here.submit(phase="prefill")
        assert refused.value.nack == "unsupported"


def source_of(params):
    return KvSource("t1", "prefill-0", len(PROMPT), 0, params)


def beat(worker, address):
    return HeartbeatSent(
        component="worker", instance=worker, process_epoch=1, state="ready", since_ms=1, pid=1,
        host="h", address=address, running=0, watermark=0,
    )  # fmt: skip
