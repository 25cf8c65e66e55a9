"""An agent against SGLang servers that check every field: the rules of prefill and decode apart.

``SGLANG_PLANT=<name>`` makes the agent break one rule (``PLANTS``), and tests of that rule fail.
"""

import asyncio
import json
import os
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest

from components.domain import sse
from components.domain.bodies import Emitted
from components.host.clock import SystemClock
from components.host.counters import Counters
from components.host.errors import CannotStart
from components.worker.engine import EngineRefused, Job, JobFailed, JobRejected
from components.worker.sglang import bootstrap, engine, exchange, leg, rooms
from components.worker.sglang.engine import SglangEngine, SglangModel
from components.worker.sglang.pairs import RoleKept, RoleSwitched
from components.worker.sglang.settings import SglangSettings
from schemas.body import SamplingParameters
from tests.support.nats import until
from tests.support.sglang_server import Fault, Hub, SglangServer, logprob, piece, servers, told
from tests.support.sink import Sink
from tests.support.word_tokenizer import write_word_tokenizer

PROMPT = tuple(range(300, 320))
FAST = {
    "connect_timeout_s": 1.0,
    "first_byte_timeout_s": 0.4,
    "first_token_timeout_s": 0.6,
    "health_interval_s": 30.0,
    "retry_after_s": 0.2,
}


# What can be broken on purpose


def _reused_room(patch):
    patch.setattr(rooms.Rooms, "take", lambda self, count: (7,) * count)


def _swapped_host(patch):
    patch.setattr(engine, "host_of", lambda url, **_: "192.0.2.1")


def _scalar_batch(patch):
    def meeting(host, port, given, *, batch):
        return bootstrap.meeting(host, port, given[:1], batch=False)

    patch.setattr(engine, "meeting", meeting)


def _no_merge(patch):
    patch.setattr(exchange, "merge_answers", lambda prefill, decode: dict(decode))


def _half_pair(patch):
    def drop(self):
        self.is_over = True

    patch.setattr(leg.Leg, "drop", drop)


def _event_per_read(patch):
    def feed(self, read):
        data = read.strip().removeprefix(b"data:").strip()
        return [data] if data else []

    patch.setattr(sse.Events, "feed", feed)


def _one_after_the_other(patch):
    send = leg.Leg.send

    def later(self, request, first_byte_s):
        if self.server.side == "prefill":
            send(self, request, first_byte_s)
        else:
            asyncio.get_running_loop().call_later(0.3, send, self, request, first_byte_s)

    patch.setattr(leg.Leg, "send", later)


def _prefill_ignored(patch):
    end = exchange.PairCall._on_prefill_end

    def ignore(self, half, fault):
        half.fault = None
        end(self, half, None)

    patch.setattr(exchange.PairCall, "_on_prefill_end", ignore)


PLANTS = {
    "reused_room": _reused_room,
    "swapped_host": _swapped_host,
    "scalar_batch": _scalar_batch,
    "no_merge": _no_merge,
    "half_pair": _half_pair,
    "event_per_read": _event_per_read,
    "one_after_the_other": _one_after_the_other,
    "prefill_ignored": _prefill_ignored,
}


@pytest.fixture(autouse=True)
def _plant(monkeypatch):
    if name := os.environ.get("SGLANG_PLANT"):
        PLANTS[name](monkeypatch)


# An agent


class Nobody(SglangServer):
    """An address at which nothing listens."""

    async def start(self, port=0):
        await super().start(port)
        await super().stop()

    async def stop(self):
        pass


class Agent(Sink):
    """An engine, everything that it said, and its servers."""

    def __init__(self, made, hub, prefills, decodes, counters):
        self.engine, self.hub, self.prefills, self.decodes = made, hub, prefills, decodes
        super().__init__()
        self.counters = counters

    def submit(self, request_id="r1", *, prompt=PROMPT, emitted=None, pages=(), **sampling):
        given = {c: Emitted(tuple(ids)) for c, ids in (emitted or {}).items()}
        parameters = SamplingParameters(**{"max_tokens": 6, **sampling})
        job = Job(request_id, 1, "aggregated", prompt, parameters, given, pages)
        self.engine.submit(job)
        return job

    def has_ended(self, request_id, choice=0):
        return bool(self.finish(request_id, choice) or self.events)

    async def finished(self, request_id="r1", choice=0):
        await until(lambda: self.has_ended(request_id, choice), f"{request_id} ends")
        assert not self.events, self.events
        return self.said(request_id, choice)

    async def event(self):
        await until(lambda: bool(self.events), "an event")
        [event] = self.events
        return event

    async def run(self, *args, **more):
        self.submit(*args, **more)
        return await self.finished(*args)

    async def idle(self):
        """Nothing is held anywhere: the agent's books, its rooms, and the servers."""
        made = self.engine

        def empty():
            load = made.load()
            figures = (load.running, load.waiting, load.queued_tokens, load.kv_pages_used)
            in_flight = [s.in_flight for s in made.pairs.servers]
            busy = [s.running for s in (*self.prefills, *self.decodes)]
            return not (any(figures) or any(in_flight) or any(busy) or len(made._rooms))

        await until(empty, "idle")

    def counted(self, name):
        return self.counters.get(name, 0)


@pytest.fixture
def tokenizer_dir(tmp_path):
    return write_word_tokenizer(tmp_path)


@pytest.fixture
def agent(tokenizer_dir):
    @asynccontextmanager
    async def made(prefills=1, decodes=1, *, style="all", hub=None, text=False, **given):
        hub = hub or Hub()
        info = given.pop("info", {})
        ps = (
            [SglangServer(hub, "prefill", bootstrap_port=9001 + n) for n in range(prefills)]
            if isinstance(prefills, int)
            else prefills
        )
        ds = (
            [SglangServer(hub, "decode", style=style, info=info) for _ in range(decodes)]
            if isinstance(decodes, int)
            else decodes
        )
        async with servers(hub, *ps, *ds):
            settings = SglangSettings(
                **{**FAST, "tokenizer_dir": "" if text else str(tokenizer_dir), **given}
            )
            model = SglangModel(
                "m", 1, tuple((s.url, s.bootstrap_port) for s in ps), tuple(s.url for s in ds),
                context_tokens_max=1000, seqs_max=8, waiting_max=100,
            )  # fmt: skip
            faults: list[BaseException] = []
            counters = Counters()
            one = SglangEngine(
                model, settings, clock=SystemClock(), count=counters.add, on_fault=faults.append
            )
            yard = Agent(one, hub, ps, ds, counters)
            await one.start(yard)
            try:
                yield yard
            finally:
                await one.stop()
            assert not faults, faults

    return made


# Where the two halves meet


@pytest.mark.parametrize("stream", [True, False])
async def test_both_servers_get_one_body_with_the_prefill_servers_address_and_one_room(
    agent, stream
):
    async with agent(2, 2, stream=stream, policy="round_robin") as yard:
        for number in range(8):
            assert await yard.run(f"r{number}") == told(PROMPT, 6)
        await yard.idle()
        assert yard.hub.violations == []
        sent = [r for p in yard.prefills for r in p.requests]
        assert len(sent) == 8
        for request in sent:
            assert request in yard.decodes[0].requests + yard.decodes[1].requests
            assert type(request["bootstrap_room"]) is int
            assert request["bootstrap_host"] == "127.0.0.1"
        assert {r["bootstrap_port"] for r in yard.prefills[1].requests} == {9002}


async def test_a_missing_bootstrap_port_is_null(agent):
    hub = Hub()
    async with agent([SglangServer(hub, "prefill")], hub=hub) as yard:
        await yard.run()
        assert yard.decodes[0].requests[0]["bootstrap_port"] is None
        assert hub.violations == []


@pytest.mark.parametrize(("brackets", "host"), [(True, "[::1]"), (False, "::1")])
async def test_an_ipv6_host_stands_in_brackets_unless_told_otherwise(agent, brackets, host):
    hub = Hub()
    prefill = SglangServer(hub, "prefill", ip="::1", bootstrap_port=9)
    async with agent([prefill], hub=hub, ipv6_brackets=brackets) as yard:
        if not brackets:  # servers that want it bare know themselves by that name
            prefill.host, hub.prefills[host, 9] = host, prefill
        assert await yard.run() == told(PROMPT, 6)
        assert yard.decodes[0].requests[0]["bootstrap_host"] == host
        assert hub.violations == []
        prefill.host = "[::1]"


async def test_choices_are_a_batch_with_a_room_each_in_three_lists(agent):
    async with agent() as yard:
        yard.submit(n=3, seed=5)
        for choice in range(3):
            assert await yard.finished("r1", choice) == told(PROMPT, 6)
        await yard.idle()
        [request] = yard.decodes[0].requests
        assert yard.hub.violations == []
        assert request["bootstrap_host"] == ["127.0.0.1"] * 3
        assert request["bootstrap_port"] == [9001] * 3
        assert len(set(request["bootstrap_room"])) == 3
        assert len(request["input_ids"]) == len(request["rid"]) == 3
        assert [p["sampling_seed"] for p in request["sampling_params"]] == [5, 6, 7]
        assert all("n" not in p for p in request["sampling_params"])


async def test_no_name_of_a_request_is_the_beginning_of_another(agent):
    async with agent() as yard:
        for number in range(12):
            await yard.run(f"r{number}", n=1 + number % 2)
        rids = [r["rid"] for r in yard.decodes[0].requests]
        flat = [n for rid in rids for n in (rid if isinstance(rid, list) else [rid])]
        assert not any(a != b and b.startswith(a) for a in flat for b in flat)


async def test_many_jobs_at_once_never_share_a_room(agent):
    async with agent(2, 2) as yard:
        for number in range(60):
            yard.submit(f"r{number}", n=1 + number % 3)
        for number in range(60):
            assert await yard.finished(f"r{number}") == told(PROMPT, 6)
        await yard.idle()
        assert yard.hub.violations == []
        assert all(count == 1 for count in yard.hub.seen.values())


# Both at once, and both or none


async def test_both_requests_are_on_their_way_before_either_answers(agent):
    async with agent() as yard:
        yard.prefills[0].delay_s = yard.decodes[0].delay_s = 0.15
        begun = time.monotonic()
        assert await yard.run() == told(PROMPT, 6)
        assert time.monotonic() - begun < 0.29  # one after the other would take 0.3


@pytest.mark.parametrize("dead", ["prefill", "decode"])
async def test_a_dead_server_leaves_no_half_of_a_pair(agent, dead):
    async with agent(policy="random", tries=2) as yard:
        victim, other = yard.prefills[0], yard.decodes[0]
        if dead == "decode":
            victim, other = other, victim
        await victim.stop()
        yard.engine.submit(Job("r1", 1, "aggregated", PROMPT, SamplingParameters()))
        assert isinstance(await yard.event(), JobFailed)
        assert other.requests == []  # it was never asked
        await yard.idle()
        await victim.start()


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("kind", ["status", "reset_before", "reset_after"])
async def test_when_one_half_fails_the_other_is_dropped_and_told(agent, side, kind):
    async with agent(tries=1, hub=Hub(wait_s=20)) as yard:
        fails, other = yard.prefills[0], yard.decodes[0]
        if side == "decode":
            fails, other = other, fails
        fails.faults = [Fault(kind)]
        yard.submit()
        failed = await yard.event()
        assert isinstance(failed, JobFailed)
        assert side in failed.detail.lower()
        await until(lambda: other.dropped == 1, "its connection is closed")
        await until(lambda: other.aborted == [other.requests[0]["rid"]], "it is told to abort")
        await yard.idle()


# Again, elsewhere


BEFORE_A_TOKEN = ["status", "reset_before", "reset_after", "hang", "slow"]


@pytest.mark.parametrize(
    ("side", "kind"),
    [("prefill", kind) for kind in BEFORE_A_TOKEN]
    + [("decode", kind) for kind in (*BEFORE_A_TOKEN, "cut", "bad_json", "wrong_shape")],
)
async def test_a_pair_that_fails_before_a_token_is_left_for_another_with_a_new_room(
    agent, side, kind
):
    async with agent(2, 2, policy="round_robin", hub=Hub(wait_s=20)) as yard:
        failing = yard.prefills[0] if side == "prefill" else yard.decodes[0]
        failing.faults = [Fault(kind)]
        assert await yard.run() == told(PROMPT, 6)
        await yard.idle()
        assert yard.counted("pairs_retried_total") == 1
        rooms_of = [r["bootstrap_room"] for s in yard.prefills for r in s.requests]
        assert len(rooms_of) == len(set(rooms_of)) == 2
        assert yard.hub.violations == []


async def test_tries_are_bounded(agent):
    async with agent(tries=3, failures_max=9) as yard:
        yard.decodes[0].faults = [Fault("status", times=9)]
        yard.submit()
        failed = await yard.event()
        assert "Decode server error (500)" in failed.detail
        assert len(yard.decodes[0].requests) == 3
        await yard.idle()


@pytest.mark.parametrize("kind", ["cut", "bad_json", "wrong_shape"])
async def test_after_a_token_nothing_is_repeated_and_the_job_is_lost(agent, kind):
    async with agent() as yard:
        yard.decodes[0].faults = [Fault(kind, after=2)]
        yard.submit()
        assert isinstance(await yard.event(), JobFailed)
        assert len(yard.decodes[0].requests) == 1
        await yard.idle()


async def test_a_stream_without_its_end_is_cut_even_when_all_was_said(agent):
    async with agent(tries=1) as yard:
        yard.decodes[0].faults = [Fault("no_done")]
        assert await yard.run() == told(PROMPT, 6)
        await until(lambda: yard.counted("pair_decode_cut_total") == 1)
        await yard.idle()


async def test_a_continuation_goes_on_where_the_other_attempt_ended(agent):
    async with agent() as yard:
        ids, _ = told(PROMPT, 6)
        assert await yard.run(emitted={0: ids[:2]}) == (ids[2:], "".join(map(piece, ids[2:])))
        assert yard.of()[0][3] == 2
        [request] = yard.decodes[0].requests
        assert request["input_ids"] == [*PROMPT, *ids[:2]]
        assert request["sampling_params"]["max_new_tokens"] == 4


async def test_a_choice_that_was_complete_is_only_ended(agent):
    async with agent() as yard:
        ids, _ = told(PROMPT, 6)
        yard.submit(emitted={0: ids, 1: ids[:3]}, n=2)
        assert await yard.finished("r1", 0) == ([], "")
        assert await yard.finished("r1", 1) == told([*PROMPT, *ids[:3]], 3)
        assert yard.finish("r1", 0) == ["length", None, 0]
        assert yard.hub.violations == []


# Who is to blame


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_mistake_of_the_request_is_its_clients_and_is_not_tried_again(agent, status):
    async with agent() as yard:
        yard.decodes[0].faults = [Fault("status", status=status, times=9)]
        yard.submit()
        assert isinstance(await yard.event(), JobRejected)
        assert len(yard.decodes[0].requests) == 1


async def test_an_error_event_in_a_stream_is_a_mistake_of_the_request(agent):
    async with agent() as yard:
        yard.prefills[0].faults = [Fault("error_event")]
        yard.submit()
        rejected = await yard.event()
        assert isinstance(rejected, JobRejected)
        assert rejected.param == "prompt"


@pytest.mark.parametrize("status", [401, 404])
async def test_a_refusal_that_is_no_mistake_of_the_request_loses_the_job_at_once(agent, status):
    async with agent() as yard:
        yard.prefills[0].faults = [Fault("status", status=status, times=9)]
        yard.submit()
        failed = await yard.event()
        assert isinstance(failed, JobFailed)
        assert f"Prefill server error ({status})" in failed.detail
        assert len(yard.prefills[0].requests) == 1


@pytest.mark.parametrize("status", [400, 404, 429, 503])
async def test_neither_a_4xx_nor_a_full_server_opens_the_circuit(agent, status):
    async with agent(tries=1, failures_max=1) as yard:
        yard.decodes[0].faults = [Fault("status", status=status)]
        yard.submit()
        await yard.event()
        await yard.idle()
        assert yard.engine.pairs.has_pair(0.0)


async def test_failures_in_a_row_open_the_circuit_and_one_job_closes_it_again(agent):
    async with agent(1, 2, tries=1, failures_max=2, policy="round_robin") as yard:
        bad = yard.decodes[0]
        bad.faults = [Fault("status", times=3)]
        for number in range(40):
            yard.submit(f"r{number}")
            await until(partial(yard.has_ended, f"r{number}"))
            yard.events.clear()
            if number == 20:
                asked = len(bad.requests)
                assert asked == 2
                await asyncio.sleep(0.25)  # retry_after_s is over: one job goes there, and fails
        await yard.idle()
        assert len(bad.requests) == 3
        await asyncio.sleep(0.25)
        for number in range(40, 44):
            await yard.run(f"r{number}")
        assert len(bad.requests) > 3
        assert yard.engine.pairs.server(bad.url).open_until_s is None


async def test_what_one_half_did_is_not_held_against_the_other(agent):
    async with agent(tries=1, failures_max=1, hub=Hub(wait_s=20)) as yard:
        yard.prefills[0].faults = [Fault("reset_after")]
        yard.submit()
        await yard.event()
        await yard.idle()
        table = yard.engine.pairs
        assert table.server(yard.decodes[0].url).failures == 0
        assert table.server(yard.prefills[0].url).failures == 1


async def test_a_prefill_that_fails_after_decode_began_is_noticed_and_disturbs_nobody(agent):
    async with agent(failures_max=1) as yard:
        yard.prefills[0].faults = [Fault("no_done")]
        yard.prefills[0].cut = 1  # its answer comes slowly
        yard.decodes[0].itl_s = 0.01
        assert await yard.run() == told(PROMPT, 6)
        await until(lambda: yard.counted("pair_late_prefill_cut_total") == 1)
        await yard.idle()
        assert not yard.engine.pairs.has_pair(SystemClock().now_s())


async def test_prefills_answer_is_read_to_its_end_when_decode_is_done_before(agent):
    async with agent() as yard:
        yard.prefills[0].cut = 1
        assert await yard.run() == told(PROMPT, 6)
        await yard.idle()
        assert yard.prefills[0].dropped == 0
        await yard.run("r2")
        assert yard.prefills[0].connections <= 2  # kept, and used again


# Streams


@pytest.mark.parametrize("style", ["all", "new_ids", "new"])
@pytest.mark.parametrize("cut", [None, 0, 1, 7, 64])
async def test_a_stream_is_read_whatever_a_read_holds_and_a_chunk_repeats(agent, style, cut):
    info = {"all": {}, "new": {}, "new_ids": {"stream_output": True}}[style]
    async with agent(style=style, info=info) as yard:
        yard.decodes[0].cut = cut
        assert await yard.run(n=2, logprobs=1) == told(PROMPT, 6)
        assert await yard.finished("r1", 1) == told(PROMPT, 6)
        indices = [e[3] for e in yard.of() for _ in e[4]]
        assert len(indices) == 6
        assert yard.finish() == ["length", None, 3]
        await yard.idle()


async def test_without_ids_a_stream_counts_them_and_says_that_nobody_can_continue_it(agent):
    async with agent(style="no_ids") as yard:
        ids, text = await yard.run()
        assert (ids, text) == ([0] * 6, told(PROMPT, 6)[1])
        assert all(e[6] == {"opaque": True} for e in yard.of() if e[4])


async def test_a_whole_answer_is_one_entry_per_choice(agent):
    async with agent(stream=False) as yard:
        yard.submit(n=2, logprobs=0)
        for choice in range(2):
            assert await yard.finished("r1", choice) == told(PROMPT, 6)
            assert len(yard.of("r1", choice)) == 1


async def test_a_matched_stop_is_said(agent):
    async with agent() as yard:
        ids, _ = told(PROMPT, 6)
        await yard.run(stop_token_ids=(ids[2],))
        assert yard.finish() == ["stop", ids[2], 3]
        await yard.run("r2", stop=(piece(ids[1]),))
        assert yard.finish("r2") == ["stop", piece(ids[1]), 3]


# Logprobs


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("slow", ["prefill", "decode"])
@pytest.mark.parametrize("n", [1, 2])
async def test_the_prompts_logprobs_are_prefills_and_the_others_decodes(agent, stream, slow, n):
    async with agent(stream=stream) as yard:
        if slow == "prefill":
            yard.prefills[0].cut = 1 if stream else None
        else:
            yard.decodes[0].itl_s = 0.01
        yard.submit(n=n, logprobs=2, prompt_logprobs=1)
        for choice in range(n):
            ids, _ = await yard.finished("r1", choice)
            entries = yard.of("r1", choice)
            said = [one for e in entries for one in (e[6] or {}).get("logprobs", [])]
            assert [one[0][:2] for one in said] == [[i, logprob(i)] for i in ids]
            assert all(len(one) == 3 for one in said)
            of_prompt = entries[0][6]["prompt_logprobs"]
            assert of_prompt[0] is None
            assert [one[0][0] for one in of_prompt[1:]] == list(PROMPT[1:])
            assert all("prompt_logprobs" not in (e[6] or {}) for e in entries[1:])
        await yard.idle()
        assert yard.hub.violations == []


# Limits of time


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_a_server_that_never_begins_to_answer_is_given_up(agent, side):
    async with agent(tries=1, hub=Hub(wait_s=20)) as yard:
        (yard.prefills if side == "prefill" else yard.decodes)[0].faults = [Fault("slow")]
        begun = time.monotonic()
        yard.submit()
        assert "no answer has begun" in (await yard.event()).detail
        assert 0.3 < time.monotonic() - begun < 1.0


async def test_a_pair_that_gives_no_token_is_given_up(agent):
    async with agent(tries=1, hub=Hub(wait_s=20)) as yard:
        yard.decodes[0].faults = [Fault("hang")]
        yard.submit()
        assert "no token has come" in (await yard.event()).detail
        await yard.idle()


async def test_a_job_has_one_limit_over_all_its_tries(agent):
    async with agent(request_timeout_s=0.3) as yard:
        yard.decodes[0].itl_s = 0.2
        yard.submit(max_tokens=50)
        assert "not done in 0.3 s" in (await yard.event()).detail
        await until(lambda: yard.decodes[0].dropped == 1)
        await yard.idle()


# An end before the end


async def test_an_aborted_job_is_ended_at_both_servers_and_says_nothing_more(agent):
    async with agent() as yard:
        yard.decodes[0].itl_s = 0.02
        job = yard.submit(max_tokens=500, n=2)
        await until(lambda: len(yard.of()) > 2)
        yard.engine.abort(job.key)
        said = len(yard.entries)
        rids = yard.decodes[0].requests[0]["rid"]
        await until(lambda: sorted(yard.decodes[0].aborted) == sorted(rids))
        await yard.idle()
        assert (len(yard.entries), yard.events) == (said, [])
        assert await yard.run("r2") == told(PROMPT, 6)


async def test_a_server_that_is_found_dead_loses_its_jobs_and_gets_no_more(agent):
    async with agent(health_interval_s=0.05, failures_max=2) as yard:
        yard.decodes[0].itl_s = 5.0
        yard.submit()
        await until(partial(bool, yard.entries))
        yard.decodes[0].healthy = False
        assert "unhealthy" in (await yard.event()).detail
        with pytest.raises(EngineRefused, match="no decode server"):
            yard.submit("r2")
        yard.decodes[0].healthy, yard.decodes[0].itl_s = True, 0.0
        await until(lambda: yard.engine.pairs.has_pair(SystemClock().now_s()))
        yard.events.clear()
        assert await yard.run("r3") == told(PROMPT, 6)


async def test_an_agent_without_a_prefill_server_does_not_start(agent):
    hub = Hub()
    with pytest.raises(CannotStart, match="no prefill server answers"):
        async with agent([Nobody(hub, "prefill")], hub=hub):
            pass


# What is sent, and what is not


async def test_only_headers_of_the_list_reach_a_server(agent, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    hub = Hub()
    made = [SglangServer(hub, side, api_key="secret") for side in ("prefill", "decode")]
    async with agent(made[:1], made[1:], hub=hub, api_key_file=str(tmp_path / "key")) as yard:
        assert await yard.run() == told(PROMPT, 6)
        for server in made:
            [headers] = server.headers
            assert headers["authorization"] == "Bearer secret"
            assert headers["x-request-id"] == "r1"
            assert set(headers) == {
                "host", "accept", "content-type", "content-length", "authorization", "x-request-id"
            }  # fmt: skip


async def test_without_a_tokenizer_the_prompt_goes_as_text(agent):
    async with agent(text=True) as yard:
        card = yard.engine.model_card()
        assert (card.tokenizer_json, "renders" in card.features) == (b"", True)
        text = "Où est 世界?"
        assert await yard.run(prompt=tuple(text.encode())) == told(text.encode(), 6)
        [request] = yard.decodes[0].requests
        assert request["text"] == text
        assert all(e[6] == {"opaque": True} for e in yard.of())
        assert yard.hub.violations == []


@pytest.mark.parametrize("n", [1, 2])
async def test_without_a_tokenizer_a_chat_is_rendered_by_the_servers(agent, n):
    async with agent(text=True) as yard:
        messages = [{"role": "user", "content": "Hello"}]
        yard.submit(prompt=tuple(b"user: Hello"), chat=json.dumps(messages), n=n)
        for choice in range(n):
            ids, text = await yard.finished("r1", choice)
            assert text == told(b"Hello", 6)[1]
            assert not any(ids)
        assert yard.decodes[0].paths["/v1/chat/completions"] == 1
        assert yard.decodes[0].requests == yard.prefills[0].requests
        assert yard.hub.violations == []


async def test_the_card_is_read_without_the_models_own_library(agent):
    async with agent() as yard:
        card = yard.engine.model_card()
        assert (card.bos_token_id, card.eos_token_ids) == (1, (2, 3))
        assert card.chat_template == "{{ messages }}"
        assert card.context_tokens_max == 2048
        assert yard.engine.capabilities.kv_pages_total == 1000


async def test_what_the_servers_cannot_do_is_refused_before_they_are_asked(agent):
    async with agent() as yard:
        for job in (
            Job("r1", 1, "prefill", PROMPT, SamplingParameters()),
            Job("r1", 1, "aggregated", tuple(range(2048)), SamplingParameters()),
        ):
            with pytest.raises(EngineRefused):
                yard.engine.submit(job)
        assert yard.decodes[0].requests == []


# All servers as one


async def test_the_figures_of_all_servers_are_one_answer(agent):
    async with agent(1, 2) as yard:
        info = await yard.engine.servers.server_info()
        assert len(info["internal_states"]) == 2
        assert (len(info["prefill"]), len(info["decode"])) == (1, 2)
        await yard.decodes[0].stop()
        info = await yard.engine.servers.server_info()
        assert (len(info["internal_states"]), len(info["decode"])) == (1, 1)
        await yard.decodes[0].start()


async def test_caches_are_emptied_everywhere_and_never_under_a_transfer(agent):
    async with agent(2, 1) as yard:
        assert await yard.engine.reset_prefix_cache()
        assert [s.paths["/flush_cache"] for s in (*yard.prefills, *yard.decodes)] == [1, 1, 1]


async def test_a_server_changes_its_role_once_its_jobs_are_done(agent):
    async with agent(2, 1) as yard:
        server = yard.prefills[1]
        server.switch_answers = [
            (400, {"success": False, "message": "The instance is not idle"}),
            (200, {"success": True}),
        ]
        switched = await yard.engine.servers.switch_role(server.url, "decode")
        assert isinstance(switched, RoleSwitched)
        assert [s.url for s in yard.engine.pairs.of_side("decode")] == [
            yard.prefills[1].url,
            yard.decodes[0].url,
        ]


async def test_a_server_that_cannot_change_comes_back_only_if_it_says_that_this_is_safe(agent):
    async with agent(2, 1) as yard:
        server = yard.prefills[1]
        for safe in (True, False):
            server.switch_answers = [
                (500, {"success": False, "message": "no graph", "safe_to_restore": safe})
            ]
            kept = await yard.engine.servers.switch_role(server.url, "decode")
            assert kept == RoleKept("no graph", restored=safe)
            assert yard.engine.pairs.server(server.url).listed is safe
