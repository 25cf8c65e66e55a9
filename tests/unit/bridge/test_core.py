import ipaddress
from typing import Any

from components.bridge import datagram, trust
from components.bridge.core import BridgeCore
from components.bridge.windows import Windows
from components.domain import signed_frame
from schemas.engine import EngineStateReceived, ShowStates


def sent(
    core: BridgeCore,
    now_s: float,
    at_ms: int,
    *,
    engine: str = "http://a:8000",
    host: str = "10.0.0.7",
    **fields: Any,
) -> EngineStateReceived | None:
    data = datagram.test_datagram(engine, at_ms, **fields)
    return core.on_datagram(data, host, 5000, now_s, 77)


def test_a_datagram_becomes_an_event_with_when_and_from_where():
    core = BridgeCore()
    event = sent(core, 1.0, 1234567890, pending_tokens_total=384)
    assert event == EngineStateReceived(
        engine_id="http://a:8000",
        timestamp_ms=1234567890,
        latency_pred_ms=10.5,
        scheduling_mode="latency_optimized",
        pending_tokens_total=384,
        kv_cache_free_blocks=1000,
        kv_cache_total_blocks=2000,
        engine_capacity=50_000.0,
        received_ms=77,
        source_address="10.0.0.7:5000",
    )
    assert core.totals["received_total"] == core.totals["valid_total"] == 1
    assert core.totals["last_received_ms"] == 77


def test_an_ipv6_sender_is_named_in_brackets():
    event = sent(BridgeCore(), 1.0, 1, host="fd00::7")
    assert event is not None
    assert event.source_address == "[fd00::7]:5000"


def test_a_refused_datagram_is_counted_by_its_reason():
    core = BridgeCore(datagram_bytes_max=300)
    for data in (b"{", b"[]", b"x" * 301):
        assert core.on_datagram(data, "h", 1, 1.0, 1) is None
    assert sent(core, 1.0, -1) is None
    assert sent(core, 1.0, 1, note="x") is not None
    assert core.totals == {
        "received_total": 5,
        "last_received_ms": 77,
        "unicast_received_total": 5,
        "invalid_total": 4,
        "invalid_not_json_total": 1,
        "invalid_not_an_object_total": 1,
        "invalid_too_long_total": 1,
        "invalid_out_of_range_total": 1,
        "valid_total": 1,
        "unknown_fields_total": 1,
    }
    assert core.valid_rate() == "20.00%"


def test_the_valid_rate_of_nothing_is_nothing():
    assert BridgeCore().valid_rate() == "0.00%"


def test_an_older_timestamp_never_overwrites_a_newer_one_of_the_same_engine():
    core = BridgeCore()
    assert sent(core, 1.0, 100) is not None
    assert sent(core, 1.1, 99) is None
    assert sent(core, 1.1, 99, engine="http://b:8000") is not None
    assert sent(core, 1.2, 101) is not None
    assert core.totals["reordered_total"] == 1


def test_a_sender_whose_clock_was_set_back_is_heard_again_after_10_s():
    core = BridgeCore()
    assert sent(core, 1.0, 100) is not None
    assert sent(core, 11.0, 50) is None
    assert sent(core, 11.1, 50) is not None


def test_copies_of_one_broadcast_are_one_state():
    core = BridgeCore()
    assert sent(core, 1.0, 100) is not None
    assert sent(core, 1.001, 100, host="127.0.0.1") is None
    assert core.totals["duplicates_total"] == 1
    assert sent(core, 1.002, 100, pending_tokens_total=9) is not None
    # Said again later it is no copy: somebody with a fixed test datagram still wants to be seen.
    assert sent(core, 2.0, 100, pending_tokens_total=9) is not None


def test_a_flood_from_one_host_is_cut_before_it_is_parsed_and_spares_the_others():
    core = BridgeCore(source_per_s=10, source_burst=5)
    for number in range(20):
        core.on_datagram(b"{", "evil", 1, 1.0 + number / 1000, 1)
    assert core.totals["invalid_total"] == 5
    assert core.totals["rate_limited_total"] == 15
    assert sent(core, 1.02, 1) is not None
    core.on_datagram(b"{", "evil", 1, 1.2, 1)
    assert core.totals["invalid_total"] == 6


def test_many_hosts_together_are_limited_too():
    core = BridgeCore(total_per_s=10, total_burst=5, sources_max=3)
    for number in range(20):
        core.on_datagram(b"{", f"h{number}", 1, 1.0, 1)
    assert core.totals["invalid_total"] == 5
    assert core.levels(1.0)["sources"] == 3


def counts(core: BridgeCore, now_s: float) -> tuple[int, int, int]:
    levels = core.levels(now_s)
    return levels["active_engines"], levels["total_engines"], levels["sources"]


def test_sources_and_engines_are_forgotten_in_time():
    core = BridgeCore(source_per_s=1, source_burst=5)
    assert sent(core, 0.0, 1) is not None
    assert counts(core, 2.0) == (1, 1, 1)
    core.on_tick(4.9)
    assert counts(core, 4.9) == (0, 1, 1)
    core.on_tick(5.0)
    assert core.levels(5.0)["sources"] == 0
    core.on_tick(300.0)
    assert core.levels(300.0)["total_engines"] == 0


def test_invented_engine_ids_find_no_room_while_the_real_ones_talk():
    core = BridgeCore(engines_max=2)
    assert sent(core, 0.0, 1, engine="a") is not None
    assert sent(core, 5.0, 1, engine="b") is not None
    assert sent(core, 9.0, 1, engine="x") is None
    assert core.totals["engines_ignored_total"] == 1
    assert sent(core, 9.0, 2, engine="a") is not None
    # b is silent for longer than the latch holds.
    assert sent(core, 16.0, 1, engine="x") is not None
    assert core.levels(16.0)["total_engines"] == 2


# What it tells of what it knows


def test_the_latest_state_is_shown_with_its_age_and_goes_stale():
    core = BridgeCore(stale_after_s=2.0)
    sent(core, 1.0, 10, pending_tokens_total=1)
    sent(core, 2.0, 20, pending_tokens_total=2)
    [seen] = core.show(ShowStates(), now_s=2.5).engines
    assert (seen.state.pending_tokens_total, seen.age_ms, seen.stale, seen.kept) == (
        2,
        500,
        False,
        2,
    )
    [seen] = core.show(ShowStates(), now_s=4.5).engines
    assert (seen.age_ms, seen.stale) == (2_500, True)


def test_the_last_hundred_states_of_an_engine_are_kept_in_order():
    core = BridgeCore()
    for number in range(150):
        sent(core, number / 10, number, pending_tokens_total=number)
    asked = ShowStates(engine_id="http://a:8000", history=100)
    shown = core.show(asked, 16.0)
    assert [s.pending_tokens_total for s in shown.history] == list(range(50, 150))
    few = core.show(asked.model_copy(update={"history": 3}), 16.0)
    assert [s.pending_tokens_total for s in few.history] == [147, 148, 149]
    assert core.show(ShowStates(), 16.0).history == ()


def test_what_is_out_of_order_or_a_copy_is_in_no_history():
    core = BridgeCore()
    for at_ms in (10, 20, 15, 20):
        sent(core, 1.0, at_ms)
    [seen] = core.show(ShowStates(), 1.0).engines
    assert (seen.state.timestamp_ms, seen.kept) == (20, 2)


def test_a_clock_ahead_is_told_by_the_fastest_datagram():
    core = BridgeCore()
    data = [(1_000, 1_160), (2_000, 2_196), (3_000, 3_110)]  # (received, sent), 200 ms ahead
    for now_s, (received_ms, sent_ms) in enumerate(data):
        core.on_datagram(datagram.test_datagram("e", sent_ms), "h", 1, float(now_s), received_ms)
    [seen] = core.show(ShowStates(), 3.0).engines
    assert seen.clock_ahead_ms == 196
    core = BridgeCore()
    for now_s, way_ms in enumerate((40, 6, 90)):  # a clock that is right: only the way shows
        at_ms = now_s * 1_000
        core.on_datagram(datagram.test_datagram("e", at_ms), "h", 1, float(now_s), at_ms + way_ms)
    [seen] = core.show(ShowStates(), 3.0).engines
    assert seen.clock_ahead_ms == -6


def test_many_engines_come_in_pages_in_the_order_of_their_ids():
    core = BridgeCore()
    for number in range(25):
        sent(core, 1.0, 1, engine=f"e{number:02}")
    names: list[str] = []
    while True:
        shown = core.show(ShowStates(after=names[-1] if names else "", limit=10), 1.0)
        names += [seen.state.engine_id for seen in shown.engines]
        if not shown.more:
            break
    assert names == [f"e{number:02}" for number in range(25)]


def test_an_engine_that_nobody_heard_of_is_no_answer_and_the_counts_are():
    core = BridgeCore()
    core.on_datagram(b"{", "h", 1, 1.0, 1)
    shown = core.show(ShowStates(engine_id="nobody", history=5), 1.0)
    assert (shown.engines, shown.history, shown.valid_rate) == ((), (), "0.00%")
    assert shown.totals["invalid_total"] == 1
    assert shown.levels["total_engines"] == 0


IDLE: dict[str, Any] = {
    "latency_pred_ms": 0.0,
    "scheduling_mode": "latency_optimized",
    "pending_tokens_total": 0,
    "kv_cache_free_blocks": -1,
    "kv_cache_total_blocks": -1,
    "engine_capacity": 0.0,
}


def test_a_heartbeat_never_lowers_a_fresh_load():
    core = BridgeCore()
    sent(core, 0.0, 1, pending_tokens_total=384)
    event = sent(core, 1.0, 2, **IDLE)
    assert event is not None
    assert (event.heartbeat, event.pending_tokens_total, event.timestamp_ms) == (True, 384, 2)
    assert core.totals["heartbeats_over_loads_total"] == 1
    # It renews that the engine lives, not what it said: then the load is stale, and it is idle.
    assert core.show(ShowStates(), 2.9).engines[0].stale is False
    event = sent(core, 2.5, 3, **IDLE)
    assert event is not None
    assert (event.heartbeat, event.pending_tokens_total) == (True, 0)
    assert core.totals["heartbeats_total"] == 2


def test_a_load_after_a_heartbeat_is_taken_as_it_is():
    core = BridgeCore()
    sent(core, 0.0, 1, pending_tokens_total=384)
    sent(core, 0.1, 2, **IDLE)
    event = sent(core, 0.2, 3, pending_tokens_total=0)
    assert event is not None
    assert (event.heartbeat, event.pending_tokens_total) == (False, 0)


def test_broadcasts_are_counted_by_the_packet():
    core = BridgeCore()
    data = datagram.test_datagram("a", 1)
    core.on_datagram(data, "h", 1, 1.0, 1, broadcast=True)
    core.on_datagram(data, "h", 1, 1.1, 1)
    totals = core.totals
    assert (totals["broadcast_received_total"], totals["unicast_received_total"]) == (1, 1)
    assert totals["duplicates_total"] == 1


def test_a_state_that_was_long_on_its_way_is_stale_by_its_own_clock():
    core = BridgeCore()
    data = datagram.test_datagram("a", 100_000)
    core.on_datagram(data, "h", 1, 1.0, 101_000)  # a clock a second behind, or a second's way
    core.on_datagram(datagram.test_datagram("a", 103_000), "h", 1, 5.0, 109_000)
    (seen,) = core.show(ShowStates(), 5.0, 109_000).engines
    assert (seen.age_ms, seen.stale) == (0, False)
    assert (seen.clock_ahead_ms, seen.sent_age_ms, seen.stale_by_send) == (-1000, 5000, True)


# Signed senders.

KEYS = {"k1": bytes(range(32)), "k2": bytes(range(1, 33))}
WALL = 1_795_000_000_000


def frame(
    seq: int, *, epoch: int = 7, key_id: str = "k1", at_ms: int = WALL, **fields: Any
) -> bytes:
    payload = datagram.test_datagram("http://a:8000", at_ms, **fields)
    key = KEYS[key_id]
    return signed_frame.sign(payload, key_id=key_id, key=key, epoch=epoch, seq=seq, sent_ms=at_ms)


def trusting(mode: trust.Mode = "required", **more: Any) -> BridgeCore:
    given = {"windows": Windows(64, 30_000), **more}
    return BridgeCore(trust=trust.Trust(mode, KEYS, **given))


def heard(core: BridgeCore, data: bytes, now_s: float = 1.0, host: str = "10.0.0.7") -> bool:
    return core.on_datagram(data, host, 5000, now_s, WALL) is not None


def test_signed_states_are_marked_and_numbered():
    core = trusting()
    event = core.on_datagram(frame(3), "h", 1, 1.0, WALL)
    assert event is not None
    assert (event.trust, event.sender_epoch, event.sender_seq) == ("signed", 7, 3)


def test_forged_replayed_unsigned_and_old_ones_are_refused_each_by_its_name():
    started = Windows(64, 30_000, started_s=0.0, started_ms=WALL - 20_000)
    core = trusting(windows=started)
    assert heard(core, frame(5))
    refused = {
        "replayed": frame(5),
        "forged": frame(6)[:-1] + b"\x00",
        "unknown_key": frame(6).replace(b"k1", b"k9"),
        "not_a_frame": frame(6)[:40],
        "unsigned": datagram.test_datagram("http://a:8000", WALL),
        "old_epoch": frame(9, epoch=6),
        "clock": frame(1, epoch=8, at_ms=WALL - 31_000),
        "before_start": frame(1, epoch=8, at_ms=WALL - 21_000),
    }
    for data in refused.values():
        assert not heard(core, data, now_s=1.6)
    counted = {
        n[11:-6]: c
        for n, c in core.totals.items()
        if n.startswith("unbelieved_") and n != "unbelieved_total"
    }
    assert counted == dict.fromkeys(refused, 1)
    assert core.totals["unbelieved_total"] == len(refused)
    assert core.totals["valid_total"] == 1


def test_copies_of_one_signed_broadcast_are_one_state_and_no_attack():
    core = trusting()
    data = frame(5)
    assert core.on_datagram(data, "10.0.0.7", 5000, 1.0, WALL, broadcast=True) is not None
    assert not heard(core, data, now_s=1.001, host="127.0.0.1")
    assert not heard(core, data, now_s=1.002)
    totals = core.totals
    assert (totals["duplicates_total"], totals["unbelieved_total"]) == (2, 0)
    assert totals["received_total"] == totals["valid_total"] == 3
    # Played again it is one, and so is its number around something else.
    assert not heard(core, data, now_s=2.0)
    assert not heard(core, frame(5, pending_tokens_total=9), now_s=2.0)
    assert totals["unbelieved_replayed_total"] == 2
    (seen,) = core.show(ShowStates(), 2.0).engines
    assert (seen.kept, seen.heard, seen.lost, seen.age_ms) == (1, 1, 0, 1000)


def test_the_copy_of_one_for_which_there_was_no_room_makes_no_engine():
    core = trusting()
    core.engines_max = 1
    other = signed_frame.sign(
        datagram.test_datagram("http://b:8000", WALL),
        key_id="k1",
        key=KEYS["k1"],
        epoch=7,
        seq=1,
        sent_ms=WALL,
    )
    assert heard(core, other, now_s=0.9)
    assert not heard(core, frame(5), now_s=10.8)
    assert not heard(core, frame(5), now_s=11.1)  # now there would be room
    assert core.totals["engines_ignored_total"] == core.totals["duplicates_total"] == 1


def test_a_signed_one_out_of_order_is_counted_and_fills_the_gap_it_left():
    core = trusting()
    assert heard(core, frame(1))
    assert heard(core, frame(4, pending_tokens_total=4))
    assert core.show(ShowStates(), 1.0).engines[0].lost == 2
    assert not heard(core, frame(3))
    (seen,) = core.show(ShowStates(), 1.0).engines
    assert (seen.lost, seen.heard, core.totals["reordered_total"]) == (1, 3, 1)
    assert seen.state.pending_tokens_total == 4
    assert core.levels(1.0)["lost_datagrams"] == 1


def test_a_plain_sender_has_no_numbers_to_tell_its_losses_by():
    core = BridgeCore()
    sent(core, 1.0, 1)
    assert core.show(ShowStates(), 1.0).engines[0].lost is None


def test_a_new_life_of_a_sender_starts_its_numbers_anew():
    core = trusting()
    assert heard(core, frame(900))
    assert heard(core, frame(1, epoch=8))
    assert core.show(ShowStates(), 1.0).engines[0].state.sender_epoch == 8


def test_both_keys_count_while_one_is_being_changed():
    core = trusting()
    assert heard(core, frame(1))
    assert heard(core, frame(2, key_id="k2"))


def test_mixed_lets_in_what_is_listed_and_nothing_else():
    core = trusting(
        "mixed",
        networks=(ipaddress.ip_network("10.0.0.0/8"),),
        engines=frozenset({"http://b:8000"}),
    )
    plain = datagram.test_datagram("http://b:8000", WALL)
    assert heard(core, plain)
    assert not heard(core, plain, host="192.168.0.1")
    assert not heard(core, datagram.test_datagram("http://c:8000", WALL))
    assert heard(core, frame(1))
    assert core.totals["unbelieved_unsigned_total"] == 2


def test_who_signs_is_not_spoken_for_by_somebody_who_does_not():
    core = trusting("legacy")
    assert heard(core, frame(1))
    assert not heard(core, datagram.test_datagram("http://a:8000", WALL + 1))
    assert core.totals["outranked_total"] == 1
    # Once it has been silent for long, plain ones may take its place.
    assert heard(core, datagram.test_datagram("http://a:8000", WALL + 1), now_s=12.0)
