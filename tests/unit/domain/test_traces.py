"""Traces become arrivals, rows that are not as they should be are named."""

import gzip
import json
from pathlib import Path

import pytest

from components.domain.traces import (
    Arrival,
    TraceError,
    mean_rate_per_s,
    parse_azure,
    parse_mooncake,
    rescaled,
)
from tests.unit.domain.engine_calls import near

AZURE_SLICE = Path(__file__).parents[2] / "data" / "azure_conv_slice.csv.gz"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def mooncake(**row: object) -> str:
    return json.dumps(
        {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [3, 4]} | row
    )


def test_the_slice_of_the_azure_trace_is_whole():
    with gzip.open(AZURE_SLICE, "rt") as lines:
        arrivals = parse_azure(lines)
    assert len(arrivals) == 2_000
    assert arrivals[:2] == [Arrival(0.0, 374, 44), Arrival(near(4.314579), 396, 109)]
    assert mean_rate_per_s(arrivals) == pytest.approx(4.71, abs=0.01)
    assert sum(a.prompt_tokens for a in arrivals) == 2_209_565
    assert sum(a.output_tokens for a in arrivals) == 529_807


def test_azure_times_cross_midnight_and_lose_no_fraction():
    rows = [HEADER, "2023-11-16 23:59:59.7500000,8,1", "2023-11-17 00:00:01.2500000,8,1"]
    assert [a.at_s for a in parse_azure(rows)] == [0.0, 1.5]


def test_rows_without_tokens_are_left_out_and_late_rows_sorted_in():
    rows = [
        HEADER,
        "2023-11-16 18:00:02,8,1",
        "2023-11-16 18:00:00,0,5",
        "2023-11-16 18:00:01,9,1",
        "2023-11-16 18:00:03,9,0",
    ]
    assert parse_azure(rows) == [Arrival(0.0, 9, 1), Arrival(1.0, 8, 1)]


@pytest.mark.parametrize("row", ["yesterday,8,1", "2023-11-16 18:00:02,eight,1", "only"])
def test_a_bad_azure_row_is_named(row: str):
    with pytest.raises(TraceError, match="line 3"):
        parse_azure([HEADER, "2023-11-16 18:00:02,8,1", row])


def test_mooncake_rows_keep_their_blocks():
    rows = [mooncake(timestamp=1000), "", mooncake(timestamp=2500, hash_ids=[3, 5])]
    first, second = parse_mooncake(rows)
    assert (first.at_s, first.prompt_tokens, first.output_tokens) == (0.0, 600, 5)
    assert second.at_s == 1.5
    assert (first.block_ids, second.block_ids) == ((3, 4), (3, 5))


def test_equal_blocks_are_equal_pages_and_a_started_last_block_gives_its_full_pages():
    first, second = parse_mooncake([mooncake(), mooncake(hash_ids=[3, 5])])
    pages = first.page_hashes()
    assert len(pages) == len(set(pages)) == 600 // 16
    assert pages[:32] == second.page_hashes()[:32]
    assert not set(pages[32:]) & set(second.page_hashes())


def test_a_prompt_longer_than_its_blocks_has_no_pages_beyond_them():
    [arrival] = parse_mooncake([mooncake(input_length=2_000)])
    assert len(arrival.page_hashes()) == 64


@pytest.mark.parametrize("row", ["{", "[]", "3", mooncake(hash_ids=None), '{"timestamp": 1}'])
def test_a_bad_mooncake_row_is_named(row: str):
    with pytest.raises(TraceError, match="line 2"):
        parse_mooncake([mooncake(), row])


def test_a_rescaled_trace_has_the_rate_and_the_same_rhythm():
    arrivals = [Arrival(at_s, 10, 1) for at_s in (0.0, 1.0, 1.5, 6.0)]
    assert [a.at_s for a in rescaled(arrivals, 1.0)] == pytest.approx([0.0, 0.5, 0.75, 3.0])
    assert mean_rate_per_s(rescaled(arrivals, 7.0)) == pytest.approx(7.0)


def test_arrivals_at_one_instant_cannot_be_stretched():
    arrivals = [Arrival(0.0, 10, 1)] * 3
    assert rescaled(arrivals, 2.0) == arrivals
    assert rescaled([], 2.0) == []
    with pytest.raises(ValueError, match="positive"):
        rescaled(arrivals, 0.0)
