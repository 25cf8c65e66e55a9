"""What stands between a gateway and a request that succeeds."""

import pytest

from components.gateway.readiness import Readiness, readiness
from tests.unit.gateway.yard import MODEL, Yard


def found(yard: Yard, cards=(MODEL,), **changes) -> Readiness:
    return readiness(yard.core, cards, **{"connected": True, "draining": False, **changes})


@pytest.fixture
def yard() -> Yard:
    yard = Yard()
    yard.heartbeat("scheduler", "scheduler-0", owns=(MODEL,))
    yard.heartbeat("router", "router-0", owns=(MODEL,))
    yard.heartbeat("worker", "prefill-0", role="prefill")
    return yard.heartbeat("worker", "decode-0", role="decode")


def test_with_everything_there_the_model_can_be_served(yard: Yard):
    assert found(yard) == Readiness((MODEL,), ())


def test_the_most_basic_thing_that_is_missing_is_named(yard: Yard):
    assert found(yard, draining=True).missing == ("this gateway is shutting down",)
    assert found(yard, connected=False).missing == ("the connection to the bus",)
    assert found(yard, cards=()).missing == (f"the card of {MODEL}",)
    yard.heartbeat("router", "router-0", owns=())
    assert found(yard).missing == (f"a router for shard {MODEL}",)
    yard.heartbeat("worker", "decode-0", state="draining")
    yard.heartbeat("worker", "prefill-0", state="stopped")
    assert found(yard).missing == ("a worker",)
    yard.heartbeat("scheduler", "scheduler-0", state="starting")
    assert found(yard).missing == ("a scheduler",)
    assert not found(yard).ready


@pytest.mark.parametrize(
    ("roles", "ready"),
    [
        ({"aggregated-0": "ready"}, True),
        ({"prefill-0": "ready", "decode-0": "ready"}, True),
        ({"prefill-0": "ready", "decode-0": "starting"}, False),
        ({"prefill-0": "starting", "decode-0": "ready"}, False),
        ({"prefill-0": "ready"}, True),
        ({"decode-0": "ready", "prefill-0": "draining"}, True),
        ({"aggregated-0": "starting"}, False),
        ({"aggregated-0": "ready", "decode-0": "starting"}, True),
    ],
)
def test_which_workers_can_serve_together(roles, ready):
    yard = Yard()
    yard.heartbeat("scheduler", "scheduler-0").heartbeat("router", "router-0", owns=(MODEL,))
    for name, state in roles.items():
        yard.heartbeat("worker", name, role=name.split("-")[0], state=state)
    assert found(yard).ready is ready


def test_a_fleet_that_fell_silent_is_no_longer_there(yard: Yard):
    yard.silence("prefill-0", "decode-0").pass_s(2.5)
    assert found(yard).missing == ("a worker",)
