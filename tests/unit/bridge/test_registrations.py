from typing import Any

import msgpack

from components.bridge.registrations import Outcome, Registrations
from schemas.examples import example
from schemas.fleet import FleetExpired, FleetRegistered, HeartbeatSent


def pinged(core: Registrations, now_s: float, n: int = 1, **fields: Any) -> list[Outcome]:
    """What comes of the ping of engine ``n``."""
    ping = {"type": "P", "http_address": f"10.0.0.{n}:80", "zmq_address": f"10.0.0.{n}:21001"}
    return core.on_ping(f"id-{n}".encode(), msgpack.packb({**ping, **fields}), now_s)


def registry(epoch: int = 1, **changes: Any) -> HeartbeatSent:
    given = {"component": "registry", "instance": "registry-0", "process_epoch": epoch, **changes}
    return example(HeartbeatSent, **given)


def names(outcomes: list[Outcome]) -> list[str]:
    return [o.instance for o in outcomes]


def test_an_engine_is_said_at_first_sight_and_on_change_only():
    core = Registrations()
    first = FleetRegistered(
        instance="10.0.0.1:80",
        role="prefill",
        http_address="10.0.0.1:80",
        kv_address="10.0.0.1:21001",
        by="ping",
        ttl_ms=10_000,
    )
    assert pinged(core, 0.0) == [first]
    assert pinged(core, 3.0) == []
    moved = first.model_copy(update={"kv_address": "10.0.0.1:21002"})
    assert pinged(core, 6.0, zmq_address="10.0.0.1:21002") == [moved]
    (turned,) = pinged(core, 9.0, type="D", zmq_address="10.0.0.1:21002")
    assert turned == moved.model_copy(update={"role": "decode"})
    assert len(core) == 1


def test_a_silent_engine_expires_while_another_of_its_role_pings():
    core = Registrations()
    pinged(core, 0.0, 1)
    pinged(core, 0.0, 2)
    for quarter in range(1, 41):
        if quarter % 12 == 0:
            assert pinged(core, quarter / 4, 2) == []
        assert core.on_tick(quarter / 4 - 0.01) == []
    assert core.on_tick(10.25) == [
        FleetExpired(instance="10.0.0.1:80", role="prefill", silent_ms=10_250)
    ]


def test_an_engine_that_was_first_and_lives_hides_nobody_s_silence():
    # The seed kept the place of a refreshed entry and looked at the front only.
    core = Registrations()
    pinged(core, 0.0, 1)
    pinged(core, 1.0, 2)
    pinged(core, 9.0, 1)
    assert names(core.on_tick(11.0)) == ["10.0.0.2:80"]


def test_a_whole_role_that_falls_silent_expires_without_any_message():
    core = Registrations()
    for n in range(1, 4):
        pinged(core, 0.0, n, type="D")
    core.on_tick(9.0)
    assert len(core.on_tick(10.0)) == 3
    assert len(core) == 0
    assert core.totals["registrations_expired_total"] == 3


def test_two_lost_pings_are_survived():
    core = Registrations()
    pinged(core, 0.0)
    for tick in range(36):
        assert core.on_tick(tick / 4) == []
    assert pinged(core, 9.0) == []


def test_whoever_comes_back_is_said_again():
    core = Registrations()
    pinged(core, 0.0)
    core.on_tick(10.0)
    assert names(pinged(core, 12.0)) == ["10.0.0.1:80"]


def test_nobody_expires_because_we_stood_still():
    core = Registrations()
    core.on_tick(0.0)
    pinged(core, 0.0)
    assert core.on_tick(60.0) == []
    assert core.on_tick(61.0) == []
    for second in range(62, 70):
        core.on_tick(float(second))
    assert names(core.on_tick(70.0)) == ["10.0.0.1:80"]


def test_a_registry_that_starts_anew_is_told_everything_once():
    core = Registrations()
    core.set_static([("decode", "10.0.0.9:80")], 0.0)
    pinged(core, 0.0)
    assert core.on_registry(registry(1, state="starting")) == []
    assert names(core.on_registry(registry(1))) == ["10.0.0.9:80", "10.0.0.1:80"]
    assert core.on_registry(registry(1)) == []
    assert len(core.on_registry(registry(2))) == 2
    assert core.on_registry(registry(1)) == []
    assert len(core.on_registry(registry(1, instance="registry-1"))) == 2


def test_registries_are_remembered_up_to_a_bound():
    core = Registrations()
    for n in range(200):
        core.on_registry(registry(1, instance=f"registry-{n}"))
    assert len(core._registries) == 64


def test_a_static_engine_never_expires_and_learns_its_kv_address_from_a_ping():
    core = Registrations()
    (said,) = core.set_static([("prefill", "10.0.0.1:80")], 0.0)
    assert isinstance(said, FleetRegistered)
    assert (said.by, said.kv_address, said.ttl_ms) == ("static", "", 0)
    (learnt,) = pinged(core, 1.0)
    assert learnt == said.model_copy(update={"kv_address": "10.0.0.1:21001"})
    assert pinged(core, 4.0) == []
    for second in range(100):
        assert core.on_tick(float(second)) == []
    assert core.say_all() == [learnt]


def test_settings_outrank_a_ping_that_contradicts_them():
    core = Registrations()
    core.set_static([("decode", "10.0.0.1:80")], 0.0)
    assert pinged(core, 1.0) == []
    assert core.totals["pings_contradicting_settings_total"] == 1


def test_a_refused_ping_is_counted_by_its_reason_and_a_flood_is_cut():
    core = Registrations()
    assert pinged(core, 0.0, type="X") == []
    for _ in range(9):
        core.on_ping(b"id-1", b"\xc1", 0.0)
    assert pinged(core, 0.0, 2) != []
    assert core.totals == {
        "pings_total": 11,
        "pings_invalid_total": 5,
        "pings_invalid_unknown_type_total": 1,
        "pings_invalid_not_msgpack_total": 4,
        "pings_rate_limited_total": 5,
        "pings_valid_total": 1,
    }


def test_the_table_is_bounded_and_new_ones_wait_for_a_place():
    core = Registrations(engines_max=2)
    assert [len(pinged(core, 0.0, n)) for n in range(1, 4)] == [1, 1, 0]
    assert core.totals["registrations_ignored_total"] == 1
    assert pinged(core, 9.0, 1) == []
    core.on_tick(10.0)
    assert names(pinged(core, 10.0, 3)) == ["10.0.0.3:80"]
