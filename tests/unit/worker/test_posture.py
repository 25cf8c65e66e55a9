"""How an engine stands, and what each wish of an operator makes of it."""

import pytest

from components.worker.posture import Posture
from schemas.codes import Phase
from schemas.engine import ControlEngine

ALL: frozenset[Phase] = frozenset(("aggregated", "prefill", "decode"))


def wish(action, **more):
    return ControlEngine(action=action, **more)


def after(*actions):
    posture = Posture("decode")
    for action in actions:
        assert posture.begin(wish(action), ALL) == ""
        posture.end(wish(action), done=True)
    return posture


@pytest.mark.parametrize(
    ("actions", "activity", "takes_new"),
    [
        ((), "running", True),
        (("pause",), "paused", False),
        (("pause", "resume"), "running", True),
        (("sleep",), "asleep", False),
        (("pause", "sleep", "wake"), "running", True),
        (("drain",), "running", False),
        (("drain", "accept"), "running", True),
        (("drain", "pause", "resume"), "running", False),
        (("reset_prefix_cache",), "running", True),
    ],
)
def test_wishes_lead_to_an_activity(actions, activity, takes_new):
    posture = after(*actions)
    assert (posture.activity, posture.takes_new) == (activity, takes_new)


@pytest.mark.parametrize("action", ["pause", "sleep"])
def test_what_closes_the_engine_does_so_from_its_beginning_and_not_when_it_failed(action):
    posture = Posture("decode")
    posture.begin(wish(action), ALL)
    assert not posture.takes_new
    posture.end(wish(action), done=False)
    assert (posture.takes_new, posture.activity) == (True, "running")


def test_one_wish_at_a_time():
    posture = Posture("decode")
    posture.begin(wish("sleep"), ALL)
    assert posture.begin(wish("drain"), ALL) == "busy: sleep is under way"
    posture.end(wish("sleep"), done=True)
    assert posture.begin(wish("drain"), ALL) == ""


@pytest.mark.parametrize(
    ("before", "action", "says"),
    [
        (("sleep",), "pause", "wake it first"),
        (("sleep",), "resume", "wake it first"),
        (("sleep",), "reset_prefix_cache", "wake it first"),
        (("pause",), "wake", "resume it"),
    ],
)
def test_what_cannot_be_from_where_it_stands_is_said(before, action, says):
    posture = after(*before)
    assert says in posture.begin(wish(action), ALL)
    assert posture.doing is None


@pytest.mark.parametrize(
    ("before", "role", "able", "says"),
    [
        ((), None, ALL, "which role?"),
        ((), "prefill", frozenset(("aggregated",)), "unsupported: this engine cannot prefill"),
        (("pause",), "prefill", ALL, "paused"),
    ],
)
def test_a_role_that_cannot_be_taken_is_refused(before, role, able, says):
    assert says in after(*before).begin(wish("set_role", role=role), able)


def test_a_role_is_taken_when_the_work_is_done():
    posture, change = Posture("decode"), wish("set_role", role="prefill")
    assert posture.begin(change, ALL) == ""
    assert (posture.role, posture.takes_new) == ("decode", False)
    posture.end(change, done=True)
    assert (posture.role, posture.takes_new) == ("prefill", True)


@pytest.mark.parametrize(
    ("before", "control", "needed"),
    [
        ((), wish("pause"), True),
        (("pause",), wish("pause"), False),
        (("pause",), wish("pause", keep=False), True),
        ((), wish("resume"), False),
        ((), wish("reset_prefix_cache"), True),
        ((), wish("drain"), False),
        ((), wish("set_role", role="prefill"), False),
    ],
)
def test_the_engine_is_asked_only_for_what_it_is_not_yet(before, control, needed):
    assert after(*before).needs_engine(control) is needed
