"""Instants as people write them."""

import pytest

from components.cli.instants import BadInstant, parse, show

NOW = 1_795_000_000_250  # 2026-11-18T07:06:40.250Z


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("now", NOW),
        ("1795000000123", 1_795_000_000_123),
        ("90s", NOW - 90_000),
        ("1.5m", NOW - 90_000),
        ("250ms", NOW - 250),
        ("2h", NOW - 7_200_000),
        ("1d", NOW - 86_400_000),
        (show(NOW), NOW),
        ("1970-01-01T00:00:01", 1_000),
        ("1970-01-01T01:00:01+01:00", 1_000),
        ("1970-01-02", 86_400_000),
    ],
)
def test_what_people_write_is_an_instant(text: str, at_ms: int):
    assert parse(text, NOW) == at_ms


def test_a_time_of_day_is_of_today():
    day = show(NOW)[:11]
    assert parse("07:00:00.5", NOW) == parse(f"{day}07:00:00.5Z", NOW)
    assert parse("07:00", NOW) == parse(f"{day}07:00:00Z", NOW)


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "25:00", "-5m", "5y", "1e3"])
def test_what_cannot_be_read_is_told_with_what_can(text: str):
    with pytest.raises(BadInstant, match="write 2026-11-26T14"):
        parse(text, NOW)
