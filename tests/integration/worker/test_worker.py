"""Whole workers on a memory bus: streams, handoffs, fencing, repair, drain."""

import asyncio
import time

import pytest
from tokenizers import Tokenizer

from bus import subjects
from bus.memory_bus import MemoryBus, MemoryHub
from components.domain.words import vocabulary
from components.host.errors import BadSettings
from components.host.settings import load
from components.worker.settings import WorkerSettings
from schemas.examples import CARD
from schemas.handoff import GrantHandoff
from tests.integration.worker.fleet import PROMPT, fleet, story
from tests.support.host import EPOCH
from tests.support.nats import until

SLOW = "constant:ttft_ms=5,itl_ms=5"


@pytest.fixture
def hub():
    return MemoryHub()


# Streams


async def test_an_aggregated_stream_is_the_story_in_order_under_the_workers_epoch(hub):
    async with fleet(hub, "aggregated-0") as yard:
        yard.dispatch("aggregated-0")
        assert await yard.finished() == story()
        assert [e[3] for e in yard.entries()] == list(range(40))
        assert {(w, epoch) for w, epoch, _, _ in yard.frames} == {("aggregated-0", EPOCH)}
        seqs = [seq for _, _, seq, _ in yard.frames]
        assert seqs == list(range(1, len(seqs) + 1))
        await until(lambda: len(yard.states()) == 3)
        assert yard.states() == [("accepted", None), ("first_token", None), ("ended", "length")]
        await yard.idle("aggregated-0")


async def test_many_streams_share_one_frame_per_step(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        for number in range(100):
            yard.dispatch("aggregated-0", f"r{number}", max_tokens=10)
        for number in range(100):
            assert await yard.finished(f"r{number}") == story(max_tokens=10)
        largest = max(len(entries) for _, _, _, entries in yard.frames)
        assert largest == 64
        assert len(yard.frames) < 100  # for 1,000 tokens


async def test_choices_and_logprobs_come_through(hub):
    async with fleet(hub, "aggregated-0") as yard:
        yard.dispatch("aggregated-0", n=2, logprobs=1, seed=4)
        for choice in range(2):
            expected = story(choice=choice, logprobs=1, seed=4)
            assert await yard.finished("r1", choice) == expected
            for entry in yard.entries("r1", choice):
                assert [[p[0][0]] for p in entry[6]["logprobs"]] == [[i] for i in entry[4]]


async def test_not_a_character_of_a_stop_string_leaves_the_worker(hub):
    whole = story()[1]
    stop = whole[37:49]
    async with fleet(hub, "aggregated-0") as yard:
        yard.dispatch("aggregated-0", stop=(stop,))
        _, text, finish = await yard.finished()
        assert (text, finish) == (whole[:37], ["stop", stop])
        sent = ""
        for entry in yard.entries():
            sent += entry[5]
            assert whole[:37].startswith(sent)


async def test_a_continuation_starts_at_the_emitted_ids(hub):
    ids, text, finish = story()
    async with fleet(hub, "aggregated-0") as yard:
        yard.dispatch("aggregated-0", attempt=2, emitted={0: ids[:17]})
        assert await yard.finished() == (ids[17:], text[len(text_of(ids[:17])) :], finish)
        assert yard.entries()[0][3] == 17


def text_of(ids):
    return "".join(vocabulary().text(i) for i in ids)


# P and D


async def test_p_and_d_together_tell_the_same_story_and_free_everything(hub):
    async with fleet(hub, "prefill-0", "decode-0") as yard:
        for number in range(5):
            yard.pair(request_id=f"r{number}", seed=number)
        for number in range(5):
            assert await yard.finished(f"r{number}") == story(seed=number)
        await yard.idle("prefill-0", "decode-0")
        assert {worker for worker, _, _, _ in yard.frames} == {"decode-0"}
        steps = yard.hosts["decode-0"].steps("r1")
        assert steps == ["handed_over"]
        [event] = [e for e in yard.hosts["decode-0"].recorded if e.request_id == "r1"]
        assert event.detail["bytes"] == len(PROMPT) * 131_072
        assert event.detail["from"] == "prefill-0"
        assert event.detail["ms"] >= 2
        assert event.traceparent == CARD.traceparent
        assert yard.states("r1", "prefill-0") == [("accepted", None), ("ended", "stop")]


async def test_a_continuation_over_p_and_d_equals_the_rest_of_the_story(hub):
    ids, _, finish = story()
    async with fleet(hub, "prefill-0", "decode-0") as yard:
        yard.pair(attempt=2, emitted={0: ids[:9]})
        got, _, end = await yard.finished()
        assert (got, end, yard.entries()[0][3]) == (ids[9:], finish, 9)
        assert yard.offers[0].tokens == len(PROMPT) + 9


async def test_several_choices_share_what_p_computed(hub):
    async with fleet(hub, "prefill-0", "decode-0") as yard:
        yard.pair(n=3, seed=2)
        for choice in range(3):
            assert await yard.finished("r1", choice) == story(choice=choice, seed=2)
        await yard.idle("prefill-0", "decode-0")


async def test_p_killed_between_offer_and_ready_d_recomputes_and_no_lease_stays(hub):
    settings = {"transfer_gb_per_s": 0.001, "peer_silent_after_s": 0.3}
    async with fleet(hub, "prefill-0", "decode-0", **settings) as yard:
        yard.pair()
        await until(lambda: bool(yard.offers), "the offer")
        assert yard.readies == []
        yard.kill("prefill-0")
        assert await yard.finished() == story()
        await yard.idle("decode-0")
        assert yard.hosts["decode-0"].counters["fallbacks_total"] == 1
        assert yard.hosts["decode-0"].steps("r1") == []


async def test_d_killed_while_p_holds_pages_p_frees_them(hub):
    settings = {"transfer_gb_per_s": 0.001, "peer_silent_after_s": 0.3}
    async with fleet(hub, "prefill-0", "decode-0", **settings) as yard:
        yard.pair()
        await until(lambda: bool(yard.offers), "the offer")
        await until(lambda: yard.load("prefill-0").leases == 1, "a lease")
        yard.kill("decode-0")
        await yard.idle("prefill-0")


async def test_pages_are_freed_at_the_end_of_the_lease_when_d_stays_silent(hub):
    async with fleet(hub, "prefill-0", "decode-0", lease_ms=300) as yard:
        yard.dispatch("prefill-0", phase="prefill", peer="decode-0")  # D never hears of it
        await until(lambda: yard.load("prefill-0").leases == 1, "a lease")
        await yard.idle("prefill-0")
        assert yard.hosts["prefill-0"].counters["handoff_lease_expired_total"] == 1


async def test_a_transfer_longer_than_its_lease_is_stopped_and_d_recomputes(hub):
    settings = {"transfer_gb_per_s": 0.001, "lease_ms": 300}
    async with fleet(hub, "prefill-0", "decode-0", **settings) as yard:
        yard.pair()
        assert await yard.finished() == story()
        await yard.idle("prefill-0", "decode-0")
        assert yard.readies == []


async def test_d_asks_p_to_wait_while_it_has_no_room(hub):
    settings = {"kv_pages": 10, "lease_ms": 300, "profile": SLOW}
    async with fleet(hub, "prefill-0", "decode-0", **settings) as yard:
        yard.dispatch("decode-0", "big", prompt=tuple(range(300, 400)), max_tokens=50)
        await until(lambda: yard.load("decode-0").kv_pages_used >= 7, "a full engine")
        yard.pair()
        await until(lambda: bool(yard.offers), "the offer")
        await asyncio.sleep(0.15)
        assert yard.readies == []  # and the lease has been renewed more than once
        assert await yard.finished() == story()
        assert yard.hosts["decode-0"].steps("r1") == ["handed_over"]
        await yard.idle("prefill-0", "decode-0")


async def test_a_prefill_that_p_refuses_does_not_keep_d_waiting(hub):
    async with fleet(hub, "prefill-0", "decode-0") as yard:
        yard.workers["prefill-0"]._core.drain()
        yard.pair()
        assert await yard.finished() == story()
        assert yard.states("r1", "prefill-0") == [("refused", "draining")]


async def test_a_word_in_anothers_name_is_ignored(hub):
    async with fleet(hub, "prefill-0", "decode-0", transfer_gb_per_s=0.001) as yard:
        yard.dispatch("prefill-0", phase="prefill", peer="decode-0")
        await until(lambda: bool(yard.offers), "the offer")
        forged = GrantHandoff(
            transfer_id="r1.1",
            sender="decode-0",
            sender_epoch=yard.hosts["decode-0"].epoch,
            pages=4,
        )
        yard.router.bus.publish(subjects.grant_handoff("prefill-0"), forged)
        counters = yard.hosts["prefill-0"].counters
        await until(lambda: counters.get("handoff_ignored_total") == 1)
        yard.cancel("prefill-0")
        await yard.idle("prefill-0")


# Cancelling and fencing


@pytest.mark.parametrize("pair", [False, True])
async def test_cancel_frees_everything_within_a_step(hub, pair):
    names = ["prefill-0", "decode-0"] if pair else ["aggregated-0"]
    async with fleet(hub, *names, profile=SLOW) as yard:
        emitting = names[-1]
        if pair:
            yard.pair(max_tokens=20_000)
        else:
            yard.dispatch(emitting, max_tokens=20_000)
        await until(lambda: len(yard.ids()) > 5)
        cancelled_s = time.monotonic()
        for name in names:
            yard.cancel(name)
        engine = yard.workers[emitting]._engine
        await until(lambda: engine.free_pages == 2000, "free pages")
        assert time.monotonic() - cancelled_s < 10  # 20,000 tokens would take 100 s
        await until(lambda: ("ended", "abort") in yard.states("r1", emitting))
        await yard.idle(*names)
        before = len(yard.ids())
        await asyncio.sleep(0.03)
        assert len(yard.ids()) == before


async def test_a_higher_attempt_ends_the_lower_one(hub):
    ids, _, _ = story()
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        yard.dispatch("aggregated-0", max_tokens=20_000)
        await until(lambda: len(yard.ids()) > 5)
        yard.dispatch("aggregated-0", attempt=2, emitted={0: ids[:4]})
        assert (await yard.finished(attempt=2))[0] == ids[4:]
        attempts = [e[1] for e in yard.entries()]
        assert attempts == sorted(attempts)
        yard.dispatch("aggregated-0", attempt=1)
        await until(lambda: ("refused", "duplicate") in yard.states())


async def test_a_stale_router_is_refused(hub):
    async with fleet(hub, "aggregated-0") as yard:
        yard.dispatch("aggregated-0", "r1", router_epoch=4)
        yard.dispatch("aggregated-0", "r2", router_epoch=3)
        await until(lambda: yard.states("r2") == [("refused", "stale_epoch")])
        await until(lambda: yard.load("aggregated-0").router_epoch_max == 4)


async def test_a_dispatch_for_a_former_life_is_refused(hub):
    async with fleet(hub, "aggregated-0") as yard:
        yard.dispatch("aggregated-0", worker_epoch=EPOCH - 1)
        await until(lambda: yard.states() == [("refused", "draining")])


async def test_streams_of_a_silent_gateway_end_after_the_grace(hub):
    settings = {"profile": SLOW, "gateway_grace_ms": 300}
    async with fleet(hub, "aggregated-0", **settings) as yard:
        await until(lambda: yard.workers["aggregated-0"]._core._around.gateways._heard != {})
        yard.dispatch("aggregated-0", max_tokens=30_000)
        await until(lambda: len(yard.ids()) > 5)
        yard.dispatch("aggregated-0", "r2", max_tokens=30_000, card={"gateway": "gateway-9"})
        await until(lambda: ("ended", "abort") in yard.states("r2"))
        assert ("ended", "abort") not in yard.states("r1")  # that one is heard


# Bodies


async def test_a_body_is_fetched_from_the_gateway(hub):
    async with fleet(hub, "aggregated-0") as yard:
        yard.bodies["r1"] = yard.dispatch("aggregated-0", inline=False)
        assert await yard.finished() == story()


@pytest.mark.parametrize("answer", ["none", "nothing"])
async def test_without_a_body_the_attempt_is_refused(hub, answer):
    async with fleet(hub, "aggregated-0", body_timeout_ms=30) as yard:
        if answer == "none":
            yard.bodies["r1"] = None
        yard.dispatch("aggregated-0", inline=False)
        await until(lambda: yard.states() == [("refused", "body_unavailable")])
        await yard.idle("aggregated-0")


# Repair


async def test_resume_gives_exactly_what_is_missing_also_after_the_end(hub):
    ids, text, finish = story(max_tokens=300)
    async with fleet(hub, "aggregated-0") as yard:
        yard.dispatch("aggregated-0", max_tokens=300)
        await yard.finished()
        for start in (0, 1, 150, 299, 300):
            entries, unknown, more = await yard.resume("aggregated-0", ("r1", 1, 0, start))
            assert [i for e in entries for i in e[4]] == ids[start:]
            assert "".join(e[5] for e in entries) == text[len(text_of(ids[:start])) :]
            assert entries[-1][7][:2] == finish
            assert (unknown, more) == ((), False)
        _, unknown, _ = await yard.resume("aggregated-0", ("r1", 2, 0, 0), ("r9", 1, 0, 0))
        assert [p.request_id for p in unknown] == ["r1", "r9"]


async def test_tokens_of_an_outage_can_be_had_afterwards(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW, deaf_after_s=0.1) as yard:
        yard.dispatch("aggregated-0", max_tokens=100)
        await until(lambda: len(yard.ids()) > 5)
        hub.partition("gateway-0")
        had = len(yard.ids())
        await asyncio.sleep(0.15)
        hub.heal("gateway-0")
        entries, _, _ = await yard.resume("aggregated-0", ("r1", 1, 0, had))
        missed = [i for e in entries for i in e[4]]
        assert len(missed) > 15
        await until(lambda: yard.finish() is not None)
        whole = story(max_tokens=100)[0]
        assert yard.ids()[:had] + missed == whole[: had + len(missed)]


async def test_another_gateway_that_asks_gets_the_rest_of_the_stream(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        yard.dispatch("aggregated-0", max_tokens=60)
        await until(lambda: len(yard.ids()) > 5)
        other = MemoryBus(hub, source="gateway-1", epoch=9)
        await other.connect()
        frames = []
        subject = subjects.frames("gateway-1", "aggregated-0")
        await other.subscribe_frames(subject, lambda _, data: frames.append(data))
        entries, _, _ = await yard.resume("aggregated-0", ("r1", 1, 0, 3), bus=other)
        assert [i for e in entries for i in e[4]] == story(max_tokens=60)[0][
            3 : 3 + len_of(entries)
        ]
        await until(lambda: len(frames) > 10)
        await other.close()


def len_of(entries):
    return sum(len(e[4]) for e in entries)


async def test_live_streams_say_where_they_are_although_nothing_comes(hub):
    async with fleet(hub, "aggregated-0", profile="constant:ttft_ms=1800") as yard:
        yard.dispatch("aggregated-0", max_tokens=2)
        await until(lambda: bool(yard.frames), "a high-water entry")
        [entry] = yard.frames[0][3]
        assert entry == ("r1", 1, 0, 0, [], "", None, None)
        await yard.finished()


# What it says of itself


async def test_load_is_said_on_change_at_most_so_often_and_at_least_once_a_second(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW, load_interval_ms=100) as yard:
        await until(lambda: len(yard.loads["aggregated-0"]) > 1, "an idle report", 2.0)
        before, began_s = len(yard.loads["aggregated-0"]), time.monotonic()
        for number in range(20):
            yard.dispatch("aggregated-0", f"r{number}", max_tokens=80)
        await yard.finished("r19")
        said = len(yard.loads["aggregated-0"]) - before
        assert said <= (time.monotonic() - began_s) / 0.1 + 2
        busiest = max(yard.loads["aggregated-0"], key=lambda load: load.running)
        assert busiest.running == 20
        assert busiest.admitted[0].dispatch_seq == 20
        assert busiest.kv_pages_used > 0


async def test_a_heartbeat_names_role_model_shard_and_progress(hub):
    async with fleet(hub, "decode-0", shard="east") as yard:
        yard.dispatch("decode-0")
        await yard.finished()
        beat = yard.workers["decode-0"].heartbeat()
        assert beat == {
            "role": "decode",
            "model": "sim/words",
            "shard": "east",
            "watermark": 40,
            "running": 0,
        }


async def test_one_of_a_models_workers_shows_its_card(hub):
    async with fleet(hub, "prefill-0", "decode-0", context_tokens_max=777) as yard:
        card, tokenizer_json = await yard.card()
        assert (card.model, card.context_tokens_max) == ("sim/words", 777)
        tokenizer = Tokenizer.from_str(tokenizer_json)
        assert tokenizer.decode(story()[0]) == story()[1]


# Leaving


async def test_a_draining_worker_finishes_what_runs_and_takes_nothing_new(hub):
    async with fleet(hub, "aggregated-0", profile=SLOW) as yard:
        yard.dispatch("aggregated-0", max_tokens=300)  # 1.5 s: time to look on
        await until(lambda: len(yard.ids()) > 5)
        draining = asyncio.ensure_future(yard.workers["aggregated-0"].drain(5.0))
        await until(lambda: not yard.load("aggregated-0").accepting)
        yard.dispatch("aggregated-0", "r2")
        await until(lambda: yard.states("r2") == [("refused", "draining")])
        assert not draining.done()
        assert await yard.finished() == story(max_tokens=300)
        await asyncio.wait_for(draining, 1.0)


async def test_what_runs_past_the_deadline_is_given_up_and_its_leases_released(hub):
    settings = {"profile": SLOW, "transfer_gb_per_s": 0.001}
    async with fleet(hub, "prefill-0", "decode-0", **settings) as yard:
        yard.pair(max_tokens=30_000)
        await until(lambda: bool(yard.offers), "the offer")
        started_s = time.monotonic()
        await yard.workers["prefill-0"].drain(0.1)
        assert time.monotonic() - started_s < 2
        await yard.workers["prefill-0"].stop()
        await until(lambda: len(yard.ids()) > 3)  # D has heard and goes on alone
        await until(lambda: yard.load("decode-0").leases == 0)
        yard.cancel("decode-0")
        await yard.idle("decode-0")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"role": "prefill"}, "switchyard"),
        ({"role": "aggregated"}, "none"),
        ({"role": "aggregated", "connector": "switchyard"}, "switchyard"),
        ({"role": "decode", "kv_transfer": {"kv_connector": "NixlConnector"}}, "other"),
        ({"role": "decode", "connector": "none"}, "none"),
    ],
)
def test_an_engine_hands_over_by_our_connector_unless_another_is_named(given, found):
    settings = load(WorkerSettings, "worker", None, {}, {"engine": "vllm", **given})
    assert settings.hands_over_by == found


@pytest.mark.parametrize(
    "wrong", [{"connector": "other"}, {"connector": "none", "kv_transfer": {"kv_connector": "X"}}]
)
def test_a_connector_that_is_named_by_halves_is_refused_in_words(wrong):
    with pytest.raises(BadSettings, match="kv_transfer"):
        load(WorkerSettings, "worker", None, {}, {"engine": "vllm", **wrong})


@pytest.mark.parametrize(
    "wrong", [{"profile": "nonsense"}, {"seqs_max": 512, "step_tokens_max": 256}, {"sped": 2}]
)
def test_settings_that_do_not_fit_are_refused_at_the_start(wrong):
    with pytest.raises(BadSettings):
        load(WorkerSettings, "worker", None, {}, wrong)
