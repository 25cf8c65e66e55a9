from typing import Any

from components.bridge import datagram
from components.bridge.core import BridgeCore
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


def test_sources_and_engines_are_forgotten_in_time():
    core = BridgeCore(source_per_s=1, source_burst=5)
    assert sent(core, 0.0, 1) is not None
    assert core.levels(2.0) == {"active_engines": 1, "total_engines": 1, "sources": 1}
    core.on_tick(4.9)
    assert core.levels(4.9) == {"active_engines": 0, "total_engines": 1, "sources": 1}
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
