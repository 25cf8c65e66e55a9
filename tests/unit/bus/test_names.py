"""Names as subject tokens."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import BadName
from bus.names import NAME_BYTES_MAX, decode_name, encode_name

SAFE = set(string.ascii_letters + string.digits + "-_=")
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(names)
def test_every_name_comes_back(name: str) -> None:
    assert decode_name(encode_name(name)) == name


@given(names)
def test_a_token_has_nothing_that_a_subject_gives_a_meaning(name: str) -> None:
    token = encode_name(name)
    assert token
    assert set(token) <= SAFE


@given(names, names)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (encode_name(one) == encode_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("decode-0", "decode-0"),
        ("meta-llama/Llama-3.1-8B", "meta-llama=2FLlama-3=2E1-8B"),
        ("http://10.0.0.7:8000", "http=3A=2F=2F10=2E0=2E0=2E7=3A8000"),
        (">", "=3E"),
        ("*", "=2A"),
        ("a=2Fb", "a=3D2Fb"),
        ("", "="),
        ("=", "=3D"),
    ],
)
def test_tokens_can_be_read_by_eye(name: str, token: str) -> None:
    assert encode_name(name) == token
    assert decode_name(token) == name


@pytest.mark.parametrize("name", ["a" * (NAME_BYTES_MAX + 1), "é" * (NAME_BYTES_MAX // 2 + 1)])
def test_a_name_over_256_bytes_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        encode_name(name)
    assert encode_name("a" * NAME_BYTES_MAX) == "a" * NAME_BYTES_MAX
