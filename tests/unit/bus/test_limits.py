"""How much is kept is said in one place, and cannot be more than a server has room for."""

import pytest

from bus.streams import BY_NAME, MIB, STREAMS, Limits, limited
from components.cli.settings import UpSettings


def test_without_limits_streams_are_as_they_stand():
    assert limited({}) == STREAMS


def test_what_is_said_is_set_and_all_else_stays():
    made = {s.name: s for s in limited({"REQUESTS": Limits(age_s=60, per_subject=5)})}
    requests = made["REQUESTS"]
    assert (requests.max_age_s, requests.per_subject_max) == (60, 5)
    assert requests.max_bytes == BY_NAME["REQUESTS"].max_bytes
    assert requests.config()["max_msgs_per_subject"] == 5
    assert made["FLEET"] == BY_NAME["FLEET"]


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"REQESTS": Limits()}, "no stream 'REQESTS'; there are ENGINE_STATE"),
        ({"REQUESTS": Limits(age_s=0)}, "at least 1"),
        ({"REQUESTS": Limits(bytes=4096 * MIB)}, "the streams on disk would take"),
    ],
)
def test_limits_that_cannot_be_are_told(limits: dict[str, Limits], why: str):
    with pytest.raises(ValueError, match=why):
        limited(limits)
    with pytest.raises(ValueError, match=why):
        UpSettings(history=limits)


def test_memory_streams_do_not_count_as_disk():
    assert limited({"TOKENS": Limits(bytes=8192 * MIB)})
