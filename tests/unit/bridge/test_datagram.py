import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.bridge import datagram
from components.bridge.datagram import BadDatagram, Datagram

SEED = (
    b'{"engine_id": "engine-1", "timestamp_ms": 1234567890, "latency_pred_ms": 15.5,'
    b' "scheduling_mode": "latency_optimized", "pending_tokens_total": 100,'
    b' "kv_cache_free_blocks": -1, "kv_cache_total_blocks": -1, "engine_capacity": 59768}'
)


def changed(**fields: Any) -> bytes:
    whole = {"engine_id": "e", "timestamp_ms": 1000, **fields}
    return datagram.test_datagram(whole.pop("engine_id"), whole.pop("timestamp_ms"), **whole)


def reason(data: bytes) -> str:
    with pytest.raises(BadDatagram) as caught:
        datagram.read(data)
    return caught.value.reason


def test_a_datagram_of_the_seed_is_read():
    assert datagram.read(SEED) == Datagram(
        "engine-1", 1234567890, 15.5, "latency_optimized", 100, -1, -1, 59768.0
    )


def test_what_the_test_tool_writes_is_read_again():
    read = datagram.read(changed(pending_tokens_total=7))
    assert (read.engine_id, read.timestamp_ms, read.pending_tokens_total) == ("e", 1000, 7)


def test_unknown_fields_are_tolerated_and_counted():
    assert datagram.read(changed(kind="load", seq=4)).unknown_fields == 2


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"null", "not_an_object"),
        (b"[]", "not_an_object"),
        (b'"x"', "not_an_object"),
        (b"{}", "field_missing"),
        (SEED.replace(b"15.5", b"NaN"), "not_json"),
        (SEED.replace(b"15.5", b"Infinity"), "not_json"),
        (SEED.replace(b"15.5", b"-Infinity"), "not_json"),
        (SEED.replace(b"engine-1", b"a\\u0000b"), "out_of_range"),
        (SEED.replace(b"engine-1", b"\\ud800"), "not_json"),
        (SEED.replace(b"1234567890", b"99999999999999999999999999"), "wrong_type"),
        (b"[" * 4000, "not_json"),
        (b"[" * 2000 + b"]" * 2000, "not_json"),
        (b'{"a":' * 600 + b"1" + b"}" * 600, "field_missing"),
    ],
)
def test_what_is_no_state_is_refused_with_the_reason(data: bytes, why: str):
    assert reason(data) == why


@pytest.mark.parametrize("field", list(orjson.loads(SEED)))
def test_each_of_the_eight_fields_must_be_there_and_of_its_type(field: str):
    values = orjson.loads(SEED)
    del values[field]
    assert reason(orjson.dumps(values)) == "field_missing"
    wrongs: list[Any] = [None, True, [], {}]
    wrongs.append(7 if field in {"engine_id", "scheduling_mode"} else "7")
    for wrong in wrongs:
        assert reason(changed(**{field: wrong})) == "wrong_type", wrong


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timestamp_ms", 1.5),
        ("pending_tokens_total", 10.0),
        ("kv_cache_free_blocks", 1e3),
    ],
)
def test_a_count_is_a_whole_number(field: str, value: float):
    assert reason(changed(**{field: value})) == "wrong_type"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine_id", ""),
        ("engine_id", "x" * 257),
        ("engine_id", "é" * 129),
        ("engine_id", "a\nb"),
        ("timestamp_ms", -1),
        ("timestamp_ms", 2**53 + 1),
        ("latency_pred_ms", -0.1),
        ("latency_pred_ms", 1e300),
        ("scheduling_mode", "fast"),
        ("scheduling_mode", ""),
        ("pending_tokens_total", -1),
        ("pending_tokens_total", 2**41),
        ("kv_cache_free_blocks", -2),
        ("kv_cache_total_blocks", -2),
        ("engine_capacity", -1),
        ("engine_capacity", 1e13),
    ],
)
def test_each_field_has_a_range(field: str, value: Any):
    assert reason(changed(**{field: value})) == "out_of_range"


def test_a_number_beyond_all_numbers_is_refused():
    for text in (b"1e999", b"-1e999"):
        assert reason(SEED.replace(b"15.5", text)) in {"not_json", "out_of_range"}


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_reading_them_is_safe(data: bytes):
    with pytest.raises(BadDatagram):
        datagram.read(data)


@given(
    st.dictionaries(
        st.sampled_from(list(orjson.loads(SEED))),
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    )
)
def test_what_is_read_is_within_its_ranges(fields: dict[str, Any]):
    try:
        data = changed(**fields)
    except TypeError:
        return  # not to be written as JSON at all
    try:
        read = datagram.read(data)
    except BadDatagram:
        return
    assert 0 < len(read.engine_id.encode()) <= 256
    assert math.isfinite(read.latency_pred_ms)
    assert read.latency_pred_ms >= 0
    assert read.pending_tokens_total >= 0
    assert read.kv_cache_free_blocks >= -1
