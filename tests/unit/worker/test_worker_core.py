"""Which attempts an agent takes, what the engine gets of them, and how they end."""

import pytest

from components.domain.outcomes import Ask, Count, Record, Send
from components.worker.engine import JobFailed, KvArrived, KvSource, Moved, Prefilled
from components.worker.outcomes import (
    Abort,
    BeginStream,
    DropStream,
    FailStream,
    KvHere,
    OpenStream,
    ReleaseKv,
    SendKv,
    StopSending,
    Submit,
)
from components.worker.settings import WorkerSettings
from schemas.attempt import AttemptReported, CancelAttempt
from schemas.body import FetchBody
from schemas.engine import Admitted
from schemas.handoff import (
    ConsumeHandoff,
    GrantHandoff,
    OfferHandoff,
    ReadyHandoff,
    ReleaseHandoff,
)
from tests.unit.worker.agent import (
    EPOCH,
    LOAD,
    ME,
    PEER,
    PEER_EPOCH,
    Agent,
    body,
    heartbeat,
    run,
)

KEY = ("r1", 1)
OFFER = OfferHandoff(
    transfer_id="t1",
    request_id="r1",
    attempt=1,
    sender=PEER,
    sender_epoch=PEER_EPOCH,
    tokens=33,
    pages=3,
    bytes_total=33_000,
    lease_ms=10_000,
    params={"cached_tokens": 16},
)
READY = ReadyHandoff(transfer_id="t1", sender=PEER, sender_epoch=PEER_EPOCH, bytes_moved=33_000)


def release(sender=PEER, reason="transfer_failed"):
    return ReleaseHandoff(transfer_id="t1", sender=sender, reason=reason)


def cancel(attempt=1, request_id="r1", reason="client_gone"):
    return CancelAttempt(request_id=request_id, attempt=attempt, reason=reason)


# An aggregated attempt


def test_an_attempt_is_opened_begun_submitted_and_accepted():
    agent = Agent().run()
    opened, began, submitted = agent.wanted()
    assert (opened, began) == (OpenStream(KEY, "gateway-0"), BeginStream(KEY, {0: 0}))
    assert (submitted.job.key, submitted.job.phase) == (KEY, "aggregated")
    assert tuple(submitted.job.prompt) == tuple(range(300, 333))


def test_it_is_reported_accepted_then_begun_then_ended_with_its_figures():
    agent = Agent().run()
    agent.say("on_began", KEY).say("on_choice_ended", KEY, ["stop", None, 16], 5)
    accepted, began, ended = agent.sent(AttemptReported)
    assert [r.state for r in (accepted, began, ended)] == ["accepted", "first_token", "ended"]
    assert (ended.finish, ended.output_tokens, ended.cached_tokens) == ("stop", 5, 16)
    assert (ended.worker, ended.worker_epoch, ended.router_epoch) == (ME, EPOCH, 1)
    assert agent.core.is_idle


def test_it_ends_with_its_last_choice():
    agent = Agent().run(body=body(n=2))
    agent.say("on_choice_ended", KEY, ["stop", None, 0], 5)
    assert agent.reports() == [("accepted", None)]
    agent.say("on_choice_ended", KEY, ["length", None, 0], 7)
    [ended] = agent.sent(AttemptReported)
    assert (ended.state, ended.output_tokens) == ("ended", 12)


def test_a_continuation_begins_where_each_choice_stands():
    agent = Agent().run(attempt=2, body=body(n=2, emitted={1: [5, 6, 7]}))
    assert BeginStream(("r1", 2), {0: 0, 1: 3}) in agent.wanted()


# Bodies


def test_a_body_that_is_not_inline_is_asked_for_at_the_gateway():
    agent = Agent().run(body=None)
    [ask] = [o for o in agent.taken() if isinstance(o, Ask)]
    assert (ask.message, ask.to) == (FetchBody(request_id="r1", attempt=1), ("gateway-0",))
    agent.say("on_body", KEY, body())
    assert [type(o) for o in agent.wanted()] == [BeginStream, Submit]


@pytest.mark.parametrize(
    ("data", "nack"),
    [(None, "body_unavailable"), (b"junk", "unsupported"), (body(prompt=()), "unsupported")],
)
def test_without_a_usable_body_it_is_refused_and_may_come_again(data, nack):
    agent = Agent().run(body=None).say("on_body", KEY, data)
    outcomes = agent.taken()
    assert DropStream(KEY) in outcomes
    agent.outcomes = outcomes
    assert agent.reports() == [("refused", nack)]
    assert agent.core.is_idle
    assert agent.run(dispatch_seq=2).reports() == [("accepted", None)]


def test_page_hashes_that_are_none_are_refused_too():
    agent = Agent().run(page_hashes=b"odd")
    assert agent.reports() == [("refused", "unsupported")]
    assert agent.core.is_idle


def test_a_body_for_an_attempt_that_ended_meanwhile_changes_nothing():
    agent = Agent().run(body=None).say("on_cancel", cancel())
    agent.taken()
    assert agent.say("on_body", KEY, body()).taken() == []


# Refusals


def test_the_same_attempt_twice_is_refused_as_duplicate_while_it_runs_and_afterwards():
    agent = Agent().run()
    agent.taken()
    assert agent.run(dispatch_seq=2).reports() == [("refused", "duplicate")]
    agent.say("on_choice_ended", KEY, ["stop", None, 0], 1).taken()
    assert agent.run(dispatch_seq=3).reports() == [("refused", "duplicate")]


def test_a_lower_attempt_comes_too_late():
    agent = Agent().run(attempt=3)
    agent.taken()
    assert agent.run(attempt=2, dispatch_seq=2).reports() == [("refused", "duplicate")]


def test_what_ended_is_forgotten_after_a_while_and_bounded():
    agent = Agent(WorkerSettings(ended_ttl_s=5, ended_max=2)).run()
    agent.say("on_choice_ended", KEY, ["stop", None, 0], 1).after(5.1).taken()
    assert agent.run(dispatch_seq=2).reports() == [("accepted", None)]
    for number in range(5):
        agent.say("on_cancel", cancel(request_id=f"x{number}"))
    assert len(agent.core._memory) == 2


def test_a_router_whose_time_is_over_is_told_so():
    agent = Agent().run(router_epoch=5)
    agent.taken()
    older = {"request_id": "r2", "router": "router-9", "router_epoch": 4}
    assert agent.run(**older).reports() == [("refused", "stale_epoch")]
    assert agent.report().router_epoch_max == 5


def test_a_dispatch_meant_for_a_former_life_is_refused():
    assert Agent().run(worker_epoch=EPOCH - 1).reports() == [("refused", "draining")]


@pytest.mark.parametrize(
    ("more", "nack"),
    [({"prompt_tokens": 4096}, "too_long"), ({"prompt_tokens": 3300}, "too_long")],
)
def test_what_can_never_fit_is_refused_as_too_long(more, nack):
    assert Agent().run(**more).reports() == [("refused", nack)]


def test_a_full_table_and_a_draining_agent_refuse():
    agent = Agent(WorkerSettings(attempts_max=1)).run()
    agent.taken()
    assert agent.run("r2").reports() == [("refused", "full")]
    agent = Agent()
    agent.core.drain()
    assert agent.run().reports() == [("refused", "draining")]
    assert not agent.report().accepting


def test_what_the_engine_refuses_is_refused():
    agent = Agent(refuses="full").run()
    assert agent.reports() == [("refused", "full")]
    assert agent.core.is_idle


# Fencing and cancelling


def test_a_higher_attempt_takes_the_place_of_a_lower_one():
    agent = Agent().run()
    agent.taken()
    agent.run(attempt=2, dispatch_seq=2)
    wanted = agent.wanted()
    assert wanted[:2] == [Abort(KEY), DropStream(KEY)]
    assert wanted[-1].job.key == ("r1", 2)
    agent.say("on_choice_ended", KEY, ["stop", None, 0], 1)
    assert agent.taken() == []


def test_a_cancelled_attempt_leaves_engine_and_streams_at_once():
    agent = Agent().run()
    agent.taken()
    agent.say("on_cancel", cancel())
    outcomes = agent.taken()
    assert outcomes[:2] == [Abort(KEY), DropStream(KEY)]
    agent.outcomes = outcomes
    assert agent.reports() == [("ended", "abort")]
    assert agent.core.is_idle


def test_cancelling_an_attempt_ends_earlier_ones_and_no_later_one():
    agent = Agent().run(attempt=2)
    agent.taken()
    assert agent.say("on_cancel", cancel(attempt=1)).wanted() == []
    assert Abort(("r1", 2)) in agent.say("on_cancel", cancel(attempt=5)).wanted()


def test_a_cancel_that_overtakes_its_dispatch_still_counts():
    agent = Agent().say("on_cancel", cancel())
    agent.run()
    assert agent.wanted() == []
    assert agent.run(dispatch_seq=2).reports() == [("ended", "abort")]
    assert agent.run(attempt=2, dispatch_seq=3).reports() == [("accepted", None)]


# The other side of the street


def test_an_attempt_whose_gateway_is_silent_for_the_grace_is_aborted():
    agent = Agent().run(resume_ms=2_000)
    agent.taken()
    for _ in range(49):
        agent.now_s += 0.1
        agent.say("on_heartbeat", heartbeat(PEER, epoch=PEER_EPOCH)).say("on_tick")
    assert agent.taken() == []
    agent.now_s += 0.2
    agent.say("on_heartbeat", heartbeat(PEER, epoch=PEER_EPOCH)).say("on_tick")
    assert agent.wanted() == [Abort(KEY), DropStream(KEY)]


def test_a_gateway_that_was_restarted_does_not_keep_its_former_streams_alive():
    agent = Agent().run()
    agent.taken()
    for _ in range(29):
        agent.now_s += 0.1
        agent.hear(gateway_epoch=8)
        agent.say("on_tick")
    assert agent.wanted() == []
    agent.now_s += 0.2
    agent.hear(gateway_epoch=8)
    assert Abort(KEY) in agent.say("on_tick").wanted()


def test_a_worker_that_hears_nobody_does_not_blame_the_gateways():
    agent = Agent().run()
    agent.after(20, hearing=False)
    agent.after(1)
    assert not [o for o in agent.wanted() if isinstance(o, Abort)]


def test_a_stream_that_another_gateway_took_over_lives_with_that_one():
    agent = Agent().run()
    agent.say("on_rehomed", KEY, "gateway-1")
    for _ in range(60):
        agent.now_s += 0.1
        agent.say("on_heartbeat", heartbeat("gateway-1", "gateway", 9)).say("on_tick")
    assert not [o for o in agent.wanted() if isinstance(o, Abort)]


# Load


def test_a_report_contains_the_dispatches_that_were_decided():
    agent = Agent().run("r1", dispatch_seq=1, body=None).run("r2", dispatch_seq=2)
    admitted = Admitted(router="router-0", router_epoch=1, dispatch_seq=0)
    assert agent.report().admitted == (admitted,)
    agent.say("on_body", KEY, body())
    assert agent.report().admitted[0].dispatch_seq == 2


def test_a_lost_dispatch_does_not_hold_the_frontier_back():
    agent = Agent().run("r1", dispatch_seq=1).run("r2", dispatch_seq=5)
    assert agent.report().admitted[0].dispatch_seq == 5


def test_a_waiting_decode_counts_as_waiting_and_its_pages_as_used():
    agent = Agent().run(phase="decode", body=body(n=2), choices=2)
    report = agent.report(LOAD)
    assert (report.waiting, report.kv_pages_used, report.leases) == (2, 3, 1)


def test_every_counter_returns_to_zero():
    agent = Agent().run(phase="decode").hands(OFFER).hands(READY)
    agent.say("on_choice_ended", KEY, ["stop", None, 0], 1)
    report = agent.report()
    assert (report.running, report.waiting, report.kv_pages_used, report.leases) == (0, 0, 0, 0)
    assert agent.core.is_idle


# Prefill


def prefilling():
    agent = Agent().run(phase="prefill")
    agent.taken()
    return agent


def test_a_prefill_ends_for_the_router_when_its_kv_is_there_and_is_offered():
    agent = prefilling().prefilled()
    ended, offer = agent.sent()
    assert (ended.state, ended.finish, ended.cached_tokens) == ("ended", "stop", 16)
    assert (offer.sender, offer.params) == (ME, {"cached_tokens": 16})
    assert agent.report().leases == 1


def test_a_prefill_moves_when_granted_and_frees_when_consumed():
    agent = prefilling().prefilled()
    agent.taken()
    agent.hands(GrantHandoff(transfer_id="t1", sender=PEER, sender_epoch=PEER_EPOCH, pages=3))
    assert agent.wanted() == [SendKv(KEY, PEER)]
    agent.say("on_engine", Moved(KEY, 33_000))
    assert [type(m) for m in agent.sent()] == [ReadyHandoff]
    agent.hands(ConsumeHandoff(transfer_id="t1", sender=PEER))
    assert agent.wanted() == [ReleaseKv(KEY)]
    assert agent.core.is_idle


def test_the_reaper_frees_at_the_end_of_the_lease_also_in_the_middle_of_moving():
    agent = prefilling().prefilled()
    agent.hands(GrantHandoff(transfer_id="t1", sender=PEER, sender_epoch=PEER_EPOCH, pages=3))
    agent.taken()
    agent.after(9.9)
    assert agent.wanted() == []
    agent.after(0.2)
    assert agent.wanted() == [StopSending(KEY), ReleaseKv(KEY)]
    assert agent.core.is_idle


def test_a_prefill_that_d_gave_up_is_aborted_and_one_that_is_held_is_freed():
    agent = prefilling().hands(release(reason="cancelled"))
    assert agent.wanted() == [Abort(KEY)]
    agent = prefilling().prefilled()
    agent.taken()
    agent.hands(release(reason="cancelled"))
    assert agent.wanted() == [ReleaseKv(KEY)]
    assert agent.core.is_idle


def test_cancelling_a_prefill_tells_d_and_frees_wherever_it_is():
    agent = prefilling().say("on_cancel", cancel())
    outcomes = agent.taken()
    assert Abort(KEY) in outcomes
    assert release(ME, "cancelled") in [o.message for o in outcomes if isinstance(o, Send)]
    agent = prefilling().prefilled()
    agent.taken()
    agent.say("on_cancel", cancel())
    assert agent.wanted() == [ReleaseKv(KEY)]
    assert agent.core.is_idle


def test_kv_that_comes_after_its_attempt_ended_is_freed():
    agent = prefilling().say("on_cancel", cancel())
    agent.taken()
    assert agent.prefilled().wanted() == [ReleaseKv(KEY)]


def test_a_refused_prefill_does_not_let_d_wait():
    agent = Agent(refuses="full").run(phase="prefill")
    outcomes = agent.taken()
    assert release(ME, "refused") in [o.message for o in outcomes if isinstance(o, Send)]
    agent = Agent()
    agent.core.drain()
    agent.run(phase="prefill")
    assert release(ME, "refused") in agent.sent()


# Decode


def test_a_decode_is_accepted_waits_for_the_offer_and_goes_to_the_engine_when_granted():
    agent = Agent().run(phase="decode")
    assert agent.reports() == [("accepted", None)]
    agent.hands(OFFER)
    outcomes = agent.taken()
    [submit] = [o for o in outcomes if isinstance(o, Submit)]
    assert (submit.job.phase, submit.job.kv) == ("decode", KvSource.of(OFFER))
    assert [type(o.message) for o in outcomes if isinstance(o, Send)] == [GrantHandoff]


def test_when_the_bytes_are_here_it_decodes_consumes_and_records_the_handover():
    agent = Agent().run(phase="decode").hands(OFFER)
    agent.taken()
    agent.now_s += 0.25
    agent.hands(READY)
    outcomes = agent.taken()
    assert KvHere(KEY) in outcomes
    assert [type(o.message) for o in outcomes if isinstance(o, Send)] == [ConsumeHandoff]
    [record] = [o for o in outcomes if isinstance(o, Record)]
    assert (record.step, record.attempt) == ("handed_over", 1)
    assert record.detail == {"from": PEER, "tokens": 33, "bytes": 33_000, "ms": 250.0}


def test_an_engine_that_pulls_by_itself_needs_no_ready():
    agent = Agent().run(phase="decode").hands(OFFER)
    agent.taken()
    agent.say("on_engine", KvArrived(KEY, 33_000))
    assert KvHere(KEY) in agent.taken()


def test_body_and_kv_may_come_in_either_order():
    agent = Agent().run(phase="decode", body=None).hands(OFFER).hands(READY)
    assert not [o for o in agent.taken() if isinstance(o, Submit)]
    agent.say("on_body", KEY, body())
    _, submit, here = agent.wanted()
    assert (submit.job.phase, here) == ("decode", KvHere(KEY))


@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.parametrize("how", ["lost", "released"])
def test_when_p_is_gone_d_computes_the_prompt_itself(granted, how):
    agent = Agent().run(phase="decode")
    if granted:
        agent.hands(OFFER)
    agent.taken()
    if how == "released":
        agent.hands(release())
    else:
        agent.say("on_heartbeat", heartbeat(PEER, epoch=PEER_EPOCH, state="stopped"))
    wanted = agent.wanted()
    assert wanted[:-1] == ([Abort(KEY)] if granted else [])
    assert (wanted[-1].job.phase, wanted[-1].job.kv) == ("aggregated", None)
    assert agent.report().leases == 0


def test_a_p_that_died_before_it_was_ever_heard_is_noticed_too():
    agent = Agent().run(phase="decode", peer="prefill-9", peer_epoch=3)
    agent.taken()
    agent.after(1.9)
    assert agent.wanted() == []
    agent.after(0.3)
    assert [o.job.phase for o in agent.wanted()] == ["aggregated"]


def test_with_fallback_fail_the_stream_fails_instead():
    agent = Agent(WorkerSettings(fallback="fail")).run(phase="decode").hands(OFFER)
    agent.taken()
    agent.hands(release())
    outcomes = agent.taken()
    assert [o for o in outcomes if not isinstance(o, Send | Count)] == [
        Abort(KEY),
        FailStream(KEY, "error"),
    ]
    agent.outcomes = outcomes
    assert agent.reports() == [("ended", "error")]


def test_p_refusing_before_d_heard_of_it_lets_d_begin_alone():
    agent = Agent().hands(release(reason="refused")).run(phase="decode")
    assert [o.job.phase for o in agent.wanted() if isinstance(o, Submit)] == ["aggregated"]


def test_a_cancelled_decode_tells_p():
    agent = Agent().run(phase="decode").hands(OFFER)
    agent.taken()
    agent.say("on_cancel", cancel(reason="superseded"))
    outcomes = agent.taken()
    assert release(ME, "superseded") in [o.message for o in outcomes if isinstance(o, Send)]
    assert [o for o in outcomes if isinstance(o, Abort)] == [Abort(KEY)]
    assert agent.core.is_idle


def test_words_of_another_life_of_p_are_ignored():
    agent = Agent().run(phase="decode")
    agent.taken()
    agent.hands(OFFER, epoch=PEER_EPOCH - 1)
    assert agent.wanted() == []


def test_a_job_that_the_engine_lost_fails_its_stream_and_frees_p():
    agent = Agent().run(phase="decode").hands(OFFER)
    agent.taken()
    agent.say("on_engine", JobFailed(KEY, "out of memory"))
    outcomes = agent.taken()
    assert FailStream(KEY, "error") in outcomes
    assert release(ME, "transfer_failed") in [o.message for o in outcomes if isinstance(o, Send)]


# The end


def test_at_the_end_everything_is_freed_and_said():
    agent = Agent().run("r1").run("r2", phase="decode", dispatch_seq=2)
    agent.run("r3", phase="prefill", dispatch_seq=3, transfer_id="t3")
    agent.say("on_engine", Prefilled(("r3", 1), 33, 3, 33_000, 0, {}))
    agent.taken()
    agent.say("end")
    outcomes = agent.taken()
    assert ReleaseKv(("r3", 1)) in outcomes
    messages = [o.message for o in outcomes if isinstance(o, Send) and o.to == (PEER,)]
    assert {getattr(m, "transfer_id", None) for m in messages} == {"t1", "t3"}
    assert agent.core.is_idle
    assert run().card.request_id == "r1"
