from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.bridge.ping import BadPing, Ping, read

PING = {"type": "P", "http_address": "10.0.0.5:20003", "zmq_address": "10.0.0.5:21001"}


def packed(**fields: Any) -> bytes:
    data: bytes = msgpack.packb({**PING, **fields})
    return data


def test_a_ping_says_role_and_addresses():
    assert read(packed()) == Ping("prefill", "10.0.0.5:20003", "10.0.0.5:21001")
    assert read(packed(type="D")).role == "decode"
    assert read(packed(http_address="fd00::7:20003")).http_address == "[fd00::7]:20003"


def test_a_newer_engine_s_fields_are_tolerated():
    assert read(packed(version=2, load=0.5)) == read(packed())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_msgpack"),
        (b"\xc1", "not_msgpack"),
        (packed() + b"\x00", "not_msgpack"),
        (packed()[:-1], "not_msgpack"),
        (packed(note="x" * 300), "not_msgpack"),
        (packed(note=b"x"), "not_msgpack"),
        (packed(note=[1]), "not_msgpack"),
        (packed(**{f"f{n}": n for n in range(14)}), "not_msgpack"),
        (b"\x83\xa1\xff", "not_msgpack"),
        (b"\x91" * 900, "not_msgpack"),
        (b"\x81\x01\x01", "not_msgpack"),
        (b"x" * 1025, "too_long"),
        (b"\x01", "not_a_map"),
        (b"\xc0", "not_a_map"),
        (b"\x80", "field_missing"),
        (packed(zmq_address=None), "wrong_type"),
        (packed(type=1), "wrong_type"),
        (packed(type="p"), "unknown_type"),
        (packed(type="M"), "unknown_type"),
        (packed(http_address="0.0.0.0:1"), "address"),
        (packed(zmq_address="10.0.0.5"), "address"),
    ],
)
def test_what_is_no_ping_is_refused_with_its_reason(data: bytes, reason: str):
    with pytest.raises(BadPing) as refused:
        read(data)
    assert refused.value.reason == reason


@given(st.binary(max_size=1100) | st.dictionaries(st.text(), st.text()).map(msgpack.packb))
def test_no_bytes_break_the_reader(data: bytes):
    try:
        read(data)
    except BadPing:
        return
