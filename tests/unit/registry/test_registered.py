from typing import Any

from components.domain.outcomes import Count
from components.registry.core import RegistryCore
from schemas.examples import example
from schemas.fleet import FleetExpired, FleetRegistered, HeartbeatSent


def bridge(epoch: int = 1, **changes: Any) -> HeartbeatSent:
    given = {"component": "bridge", "instance": "bridge-0", "process_epoch": epoch, **changes}
    return example(HeartbeatSent, **given)


def registered(instance: str = "a:1", **changes: Any) -> FleetRegistered:
    return example(FleetRegistered, instance=instance, **changes)


def shown(core: RegistryCore) -> list[str]:
    return [engine.instance for engine in core.show(0.0).registered]


def test_what_a_bridge_registers_is_shown_until_it_expires():
    core = RegistryCore()
    core.on_message(bridge(), 0.0)
    core.on_registration(registered("b:1"), "bridge-0", 1)
    core.on_registration(registered("a:1"), "bridge-0", 1)
    core.on_registration(registered("a:1", kv_address="a:2"), "bridge-0", 1)
    assert core.show(0.0).registered == (registered("a:1", kv_address="a:2"), registered("b:1"))
    core.on_registration(example(FleetExpired, instance="a:1"), "bridge-0", 1)
    assert shown(core) == ["b:1"]
    core.on_registration(example(FleetExpired, instance="never-heard:1"), "bridge-0", 1)


def test_the_expiry_of_an_earlier_role_ends_nothing():
    core = RegistryCore()
    core.on_registration(registered(role="decode"), "bridge-0", 1)
    core.on_registration(example(FleetExpired, instance="a:1", role="prefill"), "bridge-0", 1)
    assert shown(core) == ["a:1"]


def test_what_a_lost_bridge_said_is_forgotten_after_its_ttl():
    core = RegistryCore(purge_after_s=60.0)
    core.on_message(bridge(), 0.0)
    core.on_registration(registered("pings:1", ttl_ms=10_000), "bridge-0", 1)
    core.on_registration(registered("static:1", by="static", ttl_ms=0), "bridge-0", 1)
    core.on_tick(1.0)
    core.on_tick(3.0)  # lost
    core.on_tick(12.9)
    assert shown(core) == ["pings:1", "static:1"]
    core.on_tick(13.0)
    assert shown(core) == ["static:1"]
    core.on_tick(63.0)
    assert shown(core) == []


def test_a_bridge_that_was_only_unheard_keeps_its_engines():
    core = RegistryCore()
    core.on_message(bridge(), 0.0)
    core.on_registration(registered(), "bridge-0", 1)
    core.on_tick(3.0)
    core.on_message(bridge(), 4.0)
    core.on_tick(5.0)
    core.on_message(bridge(), 20.0)
    core.on_tick(20.0)
    assert shown(core) == ["a:1"]


def test_a_new_life_of_a_bridge_with_other_settings_replaces_what_the_old_one_had():
    core = RegistryCore()
    core.on_message(bridge(1), 0.0)
    for name in ("kept:1", "removed:1"):
        core.on_registration(registered(name, by="static", ttl_ms=0), "bridge-0", 1)
    core.on_registration(registered("pings:1"), "bridge-0", 1)
    core.on_message(bridge(2, state="starting"), 1.0)
    core.on_registration(registered("kept:1", by="static", ttl_ms=0), "bridge-0", 2)
    assert shown(core) == ["kept:1", "pings:1", "removed:1"]
    core.on_message(bridge(2), 1.5)
    assert shown(core) == ["kept:1", "pings:1"]


def test_the_table_is_bounded_and_what_finds_no_place_is_counted():
    core = RegistryCore(registered_max=2)
    said = [core.on_registration(registered(f"e-{n}:1"), "bridge-0", 1) for n in range(3)]
    assert said == [[], [], [Count("registered_ignored_total")]]
    # One that has its place may change.
    assert core.on_registration(registered("e-0:1", role="decode"), "bridge-0", 1) == []
