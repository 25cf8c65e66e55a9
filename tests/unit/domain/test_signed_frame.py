"""A frame is believed only whole, under a key that is known."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.domain.signed_frame import BadFrame, BadKeys, Frame, parse_keys, sign, verify

KEYS = {"k1": b"\x01" * 32, "k2": b"\x02" * 32}


def frame(payload: bytes = b"{}", key_id: str = "k1") -> bytes:
    return sign(payload, key_id=key_id, key=KEYS[key_id], epoch=5, seq=9, sent_ms=77)


@given(st.binary(max_size=2000), st.sampled_from(sorted(KEYS)))
def test_what_was_signed_comes_back(payload: bytes, key_id: str):
    data = frame(payload, key_id)
    assert verify(data, KEYS) == Frame(key_id, 5, 9, 77, payload, data[-32:])


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_is_noticed_wherever_it_is(place: int, change: int):
    data = bytearray(frame(b'{"engine_id": "a"}'))
    data[place % len(data)] ^= change
    with pytest.raises(BadFrame):
        verify(bytes(data), KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_a_refusal(data: bytes):
    for candidate in (data, b"SWY1" + data, frame()[: len(data)], frame() + data[:1]):
        with contextlib.suppress(BadFrame):
            verify(candidate, KEYS)


def test_a_key_that_went_is_unknown():
    with pytest.raises(BadFrame, match="unknown_key"):
        verify(frame(key_id="k2"), {"k1": KEYS["k1"]})


def test_what_does_not_fit_is_not_signed():
    with pytest.raises(ValueError, match="65,535"):
        frame(b"x" * 65_536)
    for key_id in ("", "k" * 33):
        with pytest.raises(ValueError, match="key id"):
            sign(b"", key_id=key_id, key=b"x" * 32, epoch=1, seq=1, sent_ms=1)


def test_keys_are_read_in_order_with_comments():
    text = f"# two while one is changed\nnew {'ab' * 32}\n\nold {'cd' * 40}  # goes in March\n"
    assert list(parse_keys(text).items()) == [("new", b"\xab" * 32), ("old", b"\xcd" * 40)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no key"),
        ("a", "line 1 is not KEY_ID HEX"),
        ("a xyz", "not hexadecimal"),
        ("a abcd", "at least 32 bytes"),
        (f"a {'ab' * 32}\na {'ab' * 32}", "twice"),
        (f"{'k' * 33} {'ab' * 32}", "not KEY_ID HEX"),
    ],
)
def test_a_file_that_holds_no_keys_is_told(text: str, why: str):
    with pytest.raises(BadKeys, match=why):
        parse_keys(text)
