"""Both sides of a handoff, one message at a time."""

import pytest

from components.domain.handoff import (
    DecodeSide,
    FallBack,
    FreeKv,
    Granted,
    HandoffSettings,
    MoveKv,
    Pairing,
    PrefillSide,
    StartDecode,
    StopMoving,
    StopPrefill,
)
from components.domain.outcomes import Count, Send
from schemas.handoff import (
    ConsumeHandoff,
    GrantHandoff,
    OfferHandoff,
    ReadyHandoff,
    ReleaseHandoff,
    RenewHandoff,
)

P, D, P_EPOCH, D_EPOCH = "prefill-0", "decode-0", 11, 22
SETTINGS = HandoffSettings(
    lease_ms=3_000,
    hold_ms_max=20_000,
    offer_wait_ms=15_000,
    room_wait_ms=8_000,
    ready_wait_ms=4_000,
    resend_ms=1_000,
    ended_ttl_ms=30_000,
)
TO_D = Pairing("t1", "r1", 1, D, D_EPOCH, "trace")
TO_P = Pairing("t1", "r1", 1, P, P_EPOCH, "trace")


def prefill_side(settings=SETTINGS):
    return PrefillSide(P, P_EPOCH, settings)


def decode_side(settings=SETTINGS, free_pages=100):
    side = DecodeSide(D, D_EPOCH, settings)
    side.on_room(free_pages, 0.0)
    return side


def offer(attempt=1, epoch=P_EPOCH):
    return OfferHandoff(
        transfer_id="t1",
        request_id="r1",
        attempt=attempt,
        sender=P,
        sender_epoch=epoch,
        tokens=64,
        pages=4,
        bytes_total=4096,
        lease_ms=3_000,
        params={"block": 7},
    )


GRANT = GrantHandoff(transfer_id="t1", sender=D, sender_epoch=D_EPOCH, pages=4)
RENEW = RenewHandoff(transfer_id="t1", sender=D)
CONSUME = ConsumeHandoff(transfer_id="t1", sender=D)
READY = ReadyHandoff(transfer_id="t1", sender=P, sender_epoch=P_EPOCH, bytes_moved=4096)


def release(sender, reason="cancelled"):
    return ReleaseHandoff(transfer_id="t1", sender=sender, reason=reason)


def offered(settings=SETTINGS, now_s=0.0):
    side = prefill_side(settings)
    assert side.expect(TO_D, now_s) == []
    side.on_prefilled("t1", 64, 4, 4096, {"block": 7}, now_s)
    return side


def said(outcomes):
    return [o.message for o in outcomes if isinstance(o, Send)]


def done(outcomes):
    return [o for o in outcomes if not isinstance(o, Send | Count)]


# The healthy course


def test_p_offers_moves_says_ready_and_frees_when_consumed():
    side = prefill_side()
    side.expect(TO_D, 0.0)
    assert side.leases == 0
    assert side.on_prefilled("t1", 64, 4, 4096, {"block": 7}, 1.0) == [Send(offer(), (D,), "trace")]
    assert side.leases == 1
    assert side.on_message(GRANT, D_EPOCH, 1.1) == [MoveKv("t1", D, 4096)]
    assert side.on_moved("t1", 4096, 1.2) == [Send(READY, (D,), "trace")]
    assert done(side.on_message(CONSUME, D_EPOCH, 1.3)) == [FreeKv("t1", "consumed")]
    assert (len(side), side.leases) == (0, 0)


def test_d_sets_pages_aside_grants_starts_and_consumes():
    side = decode_side()
    assert side.expect(TO_P, 4, 0.0) == []
    assert (side.reserved_pages, side.leases) == (4, 1)
    assert side.on_message(offer(), P_EPOCH, 1.0) == [
        Granted("t1", offer()),
        Send(GRANT, (P,), "trace"),
    ]
    outcomes = side.on_message(READY, P_EPOCH, 1.5)
    assert done(outcomes) == [StartDecode("t1", 4096, 500.0)]
    assert said(outcomes) == [CONSUME]
    assert (len(side), side.reserved_pages, side.leases) == (0, 0, 0)


def test_the_arrival_that_ds_own_engine_sees_counts_as_ready():
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    side.on_message(offer(), P_EPOCH, 1.0)
    assert done(side.on_arrived("t1", 4096, 1.2))[0].bytes_moved == 4096
    assert done(side.on_message(READY, P_EPOCH, 1.3)) == []


# Leases and deadlines


def test_the_reaper_frees_at_the_end_of_the_lease_and_not_before():
    side = offered()
    assert done(side.on_tick(2.99)) == []
    outcomes = side.on_tick(3.0)
    assert done(outcomes) == [FreeKv("t1", "lease_expired")]
    assert said(outcomes) == [release(P, "lease_expired")]
    assert done(side.on_tick(4.0)) == []


def test_a_transfer_that_outlives_its_lease_is_stopped_before_its_pages_are_freed():
    side = offered()
    side.on_message(GRANT, D_EPOCH, 1.0)
    assert done(side.on_tick(4.0)) == [StopMoving("t1"), FreeKv("t1", "lease_expired")]
    assert done(side.on_moved("t1", 4096, 4.1)) == []


def test_renewing_starts_the_lease_anew_but_not_beyond_the_longest_hold():
    side = offered()
    for second in range(1, 19):
        side.on_message(RENEW, D_EPOCH, float(second))
        assert done(side.on_tick(second + 0.9)) == []
    assert done(side.on_tick(19.99)) == []
    assert done(side.on_tick(20.0)) == [FreeKv("t1", "lease_expired")]


def test_d_renews_while_it_has_no_room_and_grants_when_it_has():
    side = decode_side(free_pages=3)
    side.expect(TO_P, 4, 0.0)
    assert said(side.on_message(offer(), P_EPOCH, 1.0)) == [RENEW]
    assert said(side.on_tick(2.0)) == [RENEW]
    assert side.on_room(4, 2.5) == [Granted("t1", offer()), Send(GRANT, (P,), "trace")]


def test_room_is_given_in_order_of_arrival():
    side = decode_side(free_pages=3)
    side.expect(Pairing("big", "r2", 1, P, P_EPOCH), 4, 0.0)
    side.expect(TO_P, 2, 0.1)
    assert done(side.on_message(offer(), P_EPOCH, 0.2)) == []
    assert side.reserved_pages == 0
    assert done(side.on_room(6, 0.3)) == [Granted("t1", offer())]
    assert side.reserved_pages == 6


@pytest.mark.parametrize("fallback", ["recompute", "fail"])
def test_d_goes_on_without_p_when_no_offer_comes_in_time(fallback):
    side = decode_side(HandoffSettings(offer_wait_ms=15_000, fallback=fallback))
    side.expect(TO_P, 4, 0.0)
    assert done(side.on_tick(14.9)) == []
    outcomes = side.on_tick(15.0)
    assert done(outcomes) == [FallBack("t1", "lease_expired", fallback == "recompute")]
    assert said(outcomes) == [release(D, "lease_expired")]
    assert side.reserved_pages == 0


def test_d_goes_on_without_p_when_room_or_bytes_do_not_come_in_time():
    side = decode_side(free_pages=3)
    side.expect(TO_P, 4, 0.0)
    side.on_message(offer(), P_EPOCH, 1.0)
    assert done(side.on_tick(8.9)) == []
    assert done(side.on_tick(9.0)) == [FallBack("t1", "lease_expired", recompute=True)]
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    side.on_message(offer(), P_EPOCH, 1.0)
    assert done(side.on_tick(4.9)) == []
    assert done(side.on_tick(5.0)) == [FallBack("t1", "lease_expired", recompute=True)]


# Lost, doubled, late


def test_p_repeats_its_offer_and_its_ready_until_it_hears_something():
    side = offered()
    assert said(side.on_tick(1.0)) == [offer()]
    side.on_message(GRANT, D_EPOCH, 1.5)
    assert said(side.on_tick(2.5)) == []
    side.on_moved("t1", 4096, 2.6)
    assert said(side.on_tick(3.6)) == [READY]


def test_d_asks_again_for_what_it_waits_for():
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    assert said(side.on_tick(1.0)) == [RENEW]
    side.on_message(offer(), P_EPOCH, 1.5)
    assert said(side.on_tick(2.5)) == [GRANT]


def test_a_question_about_a_transfer_that_p_does_not_know_is_answered_with_a_release():
    side = prefill_side()
    assert side.on_message(RENEW, D_EPOCH, 0.0) == [Send(release(P, "lease_expired"), (D,))]
    # and it does not begin afterwards
    assert done(side.expect(TO_D, 0.1)) == [StopPrefill("t1", "lease_expired")]


def test_an_offer_that_overtakes_the_order_to_expect_it_is_kept():
    side = decode_side()
    assert side.on_message(offer(), P_EPOCH, 0.0) == []
    assert done(side.expect(TO_P, 4, 0.1)) == [Granted("t1", offer())]


def test_an_early_offer_is_forgotten_with_its_lease():
    side = decode_side()
    side.on_message(offer(), P_EPOCH, 0.0)
    side.on_tick(3.0)
    assert side.expect(TO_P, 4, 3.1) == []


def test_a_refusal_that_overtakes_the_order_is_kept_too():
    side = decode_side()
    side.on_message(release(P, "refused"), P_EPOCH, 0.0)
    assert side.expect(TO_P, 4, 0.1) == [FallBack("t1", "refused", recompute=True)]
    other = prefill_side()
    other.on_message(release(D), D_EPOCH, 0.0)
    assert done(other.expect(TO_D, 0.1)) == [StopPrefill("t1", "cancelled")]


def test_doubled_messages_change_nothing():
    p, d = offered(), decode_side()
    d.expect(TO_P, 4, 0.0)
    d.on_message(offer(), P_EPOCH, 0.1)
    assert done(d.on_message(offer(), P_EPOCH, 0.2)) == []
    p.on_message(GRANT, D_EPOCH, 0.2)
    assert done(p.on_message(GRANT, D_EPOCH, 0.3)) == []
    p.on_moved("t1", 4096, 0.4)
    assert said(p.on_message(GRANT, D_EPOCH, 0.5)) == [READY]
    d.on_message(READY, P_EPOCH, 0.6)
    again = d.on_message(READY, P_EPOCH, 0.7)
    assert (done(again), said(again)) == ([], [CONSUME])
    p.on_message(CONSUME, D_EPOCH, 0.8)
    assert p.on_message(CONSUME, D_EPOCH, 0.9) == []


def test_whoever_is_told_of_an_end_does_not_answer():
    p, d = prefill_side(), decode_side()
    assert p.on_message(release(D), D_EPOCH, 0.0) == []
    assert p.on_message(CONSUME, D_EPOCH, 0.0) == []
    assert d.on_message(release(P), P_EPOCH, 0.0) == []


def test_a_late_word_after_a_fallback_ends_the_other_side():
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    side.on_tick(15.0)
    assert said(side.on_message(offer(), P_EPOCH, 15.1)) == [release(D, "lease_expired")]


# Fencing


@pytest.mark.parametrize("message", [GRANT, RENEW, CONSUME, release(D)])
def test_p_ignores_another_life_of_d(message):
    side = offered()
    assert side.on_message(message, D_EPOCH + 1, 0.1) == [Count("handoff_ignored_total")]
    assert side.leases == 1


@pytest.mark.parametrize("message", [READY, release(P), offer()])
def test_d_ignores_another_life_of_p(message):
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    side.on_message(offer(), P_EPOCH, 0.1)
    assert side.on_message(message, P_EPOCH - 1, 0.2) == [Count("handoff_ignored_total")]
    assert side.leases == 1


def test_d_ignores_an_offer_for_another_attempt():
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    assert side.on_message(offer(attempt=2), P_EPOCH, 0.1) == [Count("handoff_ignored_total")]


# Ends


def test_a_lost_p_makes_d_compute_the_prompt_itself():
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    assert side.on_peer_lost(P, P_EPOCH - 1, 0.5) == []
    assert done(side.on_peer_lost(P, P_EPOCH, 0.5)) == [FallBack("t1", "peer_lost", recompute=True)]


def test_a_lost_d_makes_p_free_the_pages_or_stop_computing_them():
    side = offered()
    side.on_message(GRANT, D_EPOCH, 0.1)
    outcomes = side.on_peer_lost(D, D_EPOCH, 0.5)
    assert done(outcomes) == [StopMoving("t1"), FreeKv("t1", "peer_lost")]
    side = prefill_side()
    side.expect(TO_D, 0.0)
    assert done(side.on_peer_lost(D, D_EPOCH, 0.5)) == [StopPrefill("t1", "peer_lost")]


def test_a_failed_link_frees_on_p_and_falls_back_on_d():
    side = offered()
    side.on_message(GRANT, D_EPOCH, 0.1)
    outcomes = side.on_move_failed("t1", 0.2)
    assert done(outcomes) == [FreeKv("t1", "transfer_failed")]
    assert said(outcomes) == [release(P, "transfer_failed")]
    other = decode_side()
    other.expect(TO_P, 4, 0.0)
    other.on_message(offer(), P_EPOCH, 0.1)
    assert done(other.on_message(release(P, "transfer_failed"), P_EPOCH, 0.2)) == [
        FallBack("t1", "transfer_failed", recompute=True)
    ]


def test_a_cancelled_d_tells_p_and_falls_back_to_nothing():
    side = decode_side()
    side.expect(TO_P, 4, 0.0)
    outcomes = side.cancel("t1", "cancelled", 0.1)
    assert (done(outcomes), said(outcomes)) == ([], [release(D)])
    assert len(side) == 0


def test_a_kv_that_nobody_expects_any_more_is_freed_at_once():
    side = prefill_side()
    side.expect(TO_D, 0.0)
    side.cancel("t1", "cancelled", 0.1)
    assert side.on_prefilled("t1", 64, 4, 4096, {}, 0.2) == [FreeKv("t1", "cancelled")]


def test_a_drain_releases_everything():
    side = offered()
    side.expect(Pairing("t2", "r2", 1, D, D_EPOCH), 0.0)
    outcomes = side.cancel_all("draining", 1.0)
    assert done(outcomes) == [FreeKv("t1", "draining"), StopPrefill("t2", "draining")]
    assert len(said(outcomes)) == 2


def test_what_ended_is_remembered_within_bounds():
    side = prefill_side(HandoffSettings(ended_max=3, ended_ttl_ms=1_000))
    for number in range(10):
        side.cancel(f"t{number}", "cancelled", 0.0)
    assert len(side._ended) == 3
    side.on_tick(1.0)
    assert len(side._ended) == 0
