"""The packed body: what a gateway writes is what a worker reads."""

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.domain.bodies import (
    Body,
    Emitted,
    MalformedBody,
    decode_body,
    encode_body,
    pack_token_ids,
    unpack_token_ids,
    with_emitted,
)
from schemas.body import BODY_INLINE_BYTES_MAX, SamplingParameters

token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=40).map(tuple)
sampling = st.builds(
    SamplingParameters,
    max_tokens=st.integers(1, 100_000),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    n=st.integers(1, 8),
    stop=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    stop_token_ids=token_ids,
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)
emitted = st.dictionaries(
    st.integers(0, 7), st.builds(Emitted, token_ids, st.booleans()), max_size=8
)


@given(st.builds(Body, token_ids, sampling, emitted))
def test_a_body_comes_back_as_it_was(body: Body):
    assert decode_body(encode_body(body)) == body


@given(st.builds(Body, token_ids, sampling, emitted), emitted)
def test_a_continuation_changes_what_was_emitted_and_nothing_else(body: Body, later):
    continued = decode_body(with_emitted(encode_body(body), later))
    assert continued == Body(body.prompt_token_ids, body.sampling, later)


def test_parameters_that_equal_the_default_cost_nothing():
    body = Body((1, 2, 3), SamplingParameters(max_tokens=7))
    assert msgpack.unpackb(encode_body(body)) == [
        1,
        pack_token_ids((1, 2, 3)),
        [],
        {"max_tokens": 7},
    ]


def test_a_finished_choice_says_so_and_an_unfinished_one_is_as_the_layout_page_says():
    body = Body((), SamplingParameters(), {1: Emitted((5,), finished=True), 0: Emitted((4,))})
    entries = msgpack.unpackb(encode_body(body))[2]
    assert entries == [[0, pack_token_ids((4,))], [1, pack_token_ids((5,)), True]]


def test_a_prompt_of_two_thousand_tokens_rides_inside_the_control_path():
    assert len(encode_body(Body((151_000,) * 2000, SamplingParameters()))) < BODY_INLINE_BYTES_MAX


def test_token_ids_are_little_endian_uint32():
    assert pack_token_ids((1, 2**32 - 1)) == b"\1\0\0\0\xff\xff\xff\xff"


@pytest.mark.parametrize("ids", [(-1,), (2**32,)])
def test_a_token_id_outside_uint32_is_an_error(ids: tuple[int, ...]):
    with pytest.raises(ValueError, match="token ids must be"):
        pack_token_ids(ids)


def test_part_of_a_token_id_is_an_error():
    with pytest.raises(ValueError, match="whole number"):
        unpack_token_ids(b"\1\0\0")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb({}),
        msgpack.packb([1, b""]),
        msgpack.packb([2, b"", [], {}]),
        msgpack.packb([1, b"\1", [], {}]),
        msgpack.packb([1, "text", [], {}]),
        msgpack.packb([1, b"", [[0]], {}]),
        msgpack.packb([1, b"", [["0", b""]], {}]),
        msgpack.packb([1, b"", [], {"temperature": 5}]),
        msgpack.packb([1, b"", [], {"unheard_of": 5}]),
        msgpack.packb([1, b"", [], 7]),
    ],
)
def test_what_is_no_body_is_refused_by_name(data: bytes):
    with pytest.raises(MalformedBody):
        decode_body(data)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(data: bytes):
    with contextlib.suppress(MalformedBody):
        decode_body(data)
