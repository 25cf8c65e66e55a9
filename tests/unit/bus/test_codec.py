"""Messages to bytes and back."""

import contextlib
import functools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import codec
from bus.errors import MalformedMessage
from schemas.attempt import RunAttempt
from schemas.catalogue import BY_SCHEMA_ID
from schemas.engine import EngineLoadReported
from schemas.examples import EXAMPLES, example
from schemas.fleet import HeartbeatSent, ShowFleet
from schemas.frames import ENTRIES_MAX
from schemas.message import Message
from schemas.request import RequestCard, RequestEventsBatched, RequestQueued, ScheduleRequest

ALL = sorted(EXAMPLES.values(), key=lambda m: m.schema_id)
ENVELOPE: dict[str, Any] = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "source": "gateway-0",
    "epoch": 1_795_000_000_000,
    "seq": 7,
}


def wire(*values: Any) -> bytes:
    return msgspec.msgpack.encode(list(values))


def values_of(message: Message) -> list[Any]:
    """The message on the wire, as plain values, to be spoiled by a test."""
    values: list[Any] = codec.unpack(codec.encode(message, **ENVELOPE))
    return values


@pytest.mark.parametrize("message", ALL, ids=lambda m: m.schema_id)
def test_every_example_comes_back_equal(message: Message) -> None:
    decoded = codec.decode(codec.encode(message, **ENVELOPE))
    assert decoded == (message, *ENVELOPE.values())
    assert type(decoded.message) is type(message)
    assert decoded.message.model_dump_json() == message.model_dump_json()
    assert codec.decode_bare(message.schema_id, codec.encode_bare(message)) == message


@pytest.mark.parametrize("message", ALL, ids=lambda m: m.schema_id)
def test_what_was_decoded_passes_pydantic(message: Message) -> None:
    decoded = codec.decode(codec.encode(message, **ENVELOPE)).message
    assert type(message).model_validate(json.loads(decoded.model_dump_json())) == message
    assert decoded.model_copy(update={}) == message


def test_the_wire_form_is_the_envelope_and_then_the_fields_in_order() -> None:
    queued = RequestQueued(request_id="req-1", attempt=2, scheduler="scheduler-0", place=3)
    assert values_of(queued) == [
        "request.queued.v1",
        ENVELOPE["traceparent"],
        "gateway-0",
        1_795_000_000_000,
        7,
        "req-1",
        2,
        "scheduler-0",
        3,
    ]


@pytest.mark.parametrize("message", ALL, ids=lambda m: m.schema_id)
def test_fields_of_a_newer_sender_are_ignored(message: Message) -> None:
    newer = wire(*values_of(message), "a field of tomorrow", {"and": ["another"]})
    assert codec.decode(newer).message == message


@pytest.mark.parametrize("message", ALL, ids=lambda m: m.schema_id)
def test_fields_that_an_older_sender_lacks_take_their_defaults(message: Message) -> None:
    fields = list(type(message).model_fields.items())
    required = max((i + 1 for i, (_, f) in enumerate(fields) if f.is_required()), default=0)
    decoded = codec.decode(wire(*values_of(message)[: 5 + required])).message
    for name, field in fields[required:]:
        assert getattr(decoded, name) == field.get_default(call_default_factory=True)
    if required:
        with pytest.raises(MalformedMessage):
            codec.decode(wire(*values_of(message)[: 4 + required]))


@pytest.mark.parametrize("message", ALL, ids=lambda m: m.schema_id)
def test_a_value_of_another_type_is_refused(message: Message) -> None:
    values = values_of(message)
    for place in range(len(values)):
        spoiled = list(values)
        spoiled[place] = {b"\x00": 0.5}  # nothing of ours has bytes for keys
        if place == len(values) - 1 and not type(message).model_fields:
            continue
        with pytest.raises(MalformedMessage):
            codec.decode(wire(*spoiled))


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (HeartbeatSent, "pid", True),
        (HeartbeatSent, "pid", 1.0),
        (HeartbeatSent, "pid", None),
        (HeartbeatSent, "host", b"yard-1"),
        (HeartbeatSent, "state", "asleep"),
        (HeartbeatSent, "owns", ["a", 1]),
        (HeartbeatSent, "owns", "ab"),
        (ScheduleRequest, "body", "text"),
        (ScheduleRequest, "card", None),
        (ScheduleRequest, "card", []),
        (EngineLoadReported, "admitted", [["router-0", 1]]),
        (EngineLoadReported, "admitted", [None]),
        (EngineLoadReported, "predicted_step_ms", "8"),
    ],
)
def test_a_near_miss_is_refused(message: type[Message], field: str, value: Any) -> None:
    values = values_of(example(message))
    values[5 + list(message.model_fields).index(field)] = value
    with pytest.raises(MalformedMessage):
        codec.decode(wire(*values))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "request.queued.v99"),
        (0, None),
        (0, 7),
        (1, 7),
        (2, None),
        (3, "1"),
        (3, True),
        (4, 0.5),
    ],
)
def test_a_broken_envelope_is_refused(place: int, value: Any) -> None:
    values = values_of(example(RequestQueued))
    values[place] = value
    with pytest.raises(MalformedMessage):
        codec.decode(wire(*values))


def test_an_unknown_schema_and_wrong_fields_are_refused_without_an_envelope_too() -> None:
    for schema_id, fields in (
        ("request.queued.v99", []),
        ("request.queued.v1", []),
        ("request.queued.v1", {}),
        ("request.queued.v1", [1] * 10),
    ):
        with pytest.raises(MalformedMessage):
            codec.decode_bare(schema_id, codec.pack(fields))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    bare = functools.partial(codec.decode_bare, RequestQueued.schema_id)
    for read in (codec.decode, codec.unpack, codec.unpack_frame, bare):
        with contextlib.suppress(MalformedMessage):
            read(data)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(BY_SCHEMA_ID)), st.lists(plain, max_size=25))
def test_any_values_behind_a_schema_id_are_a_message_or_malformed(
    schema_id: str, values: list[Any]
) -> None:
    try:
        decoded = codec.decode(wire(schema_id, None, "s", 1, 1, *values))
    except (MalformedMessage, UnicodeEncodeError):
        return
    assert decoded.message.schema_id == schema_id
    # Whatever got through is a whole object: it can be shown, sent on and read again.
    repr(decoded.message)
    codec.encode(decoded.message, **ENVELOPE)


@pytest.mark.parametrize("flip", range(0, 200, 3))
def test_a_flipped_bit_never_breaks_the_reader(flip: int) -> None:
    data = bytearray(codec.encode(example(RunAttempt), **ENVELOPE))
    data[flip] ^= 1 << flip % 8
    with contextlib.suppress(MalformedMessage):
        codec.decode(bytes(data))


def test_nesting_without_end_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        codec.unpack(b"\x91" * 100_000)


def test_a_claimed_length_takes_no_memory() -> None:
    for header in (b"\xdd\x7f\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\x7f\xff\xff\xff"):
        with pytest.raises(MalformedMessage):
            codec.unpack(header)


def test_events_keep_what_they_add() -> None:
    batch = example(RequestEventsBatched)
    detail = {"cost": 0.25, "tokens": 3, "model": "m", "none": None, "list": [1, "a", None]}
    event = batch.events[0].model_copy(update={"detail": detail})
    sent = RequestEventsBatched(events=(event, batch.events[0]))
    assert codec.decode(codec.encode(sent, **ENVELOPE)).message == sent


def test_a_message_without_fields_is_its_envelope() -> None:
    assert len(values_of(ShowFleet())) == 5
    assert codec.decode(codec.encode(ShowFleet(), **ENVELOPE)).message == ShowFleet()


def test_a_nested_part_is_checked_like_a_message() -> None:
    fields = codec.unpack(codec.encode_bare(example(ScheduleRequest)))
    card = list(RequestCard.model_fields)
    fields[0][card.index("service_class")] = "royal"
    with pytest.raises(MalformedMessage, match="royal"):
        codec.decode_bare(ScheduleRequest.schema_id, codec.pack(fields))


def test_a_digest_depends_on_everything() -> None:
    one = codec.digest(["a", 1, [b"x"]])
    assert len(one) == 8
    assert one == codec.digest(["a", 1, [b"x"]])
    assert len({one, codec.digest(["a", 1, [b"y"]]), codec.digest(["a", 2, [b"x"]])}) == 3


# Frames.


def test_a_frame_comes_back() -> None:
    entry = ("req-1", 1, 0, 17, [5, 6], " two words", None, ["stop", None, 0])
    assert codec.unpack_frame(codec.pack_frame(9, 3, [entry] * ENTRIES_MAX)) == (
        9,
        3,
        [entry] * ENTRIES_MAX,
    )


@pytest.mark.parametrize(
    "values",
    [
        [],
        [2, 1, 1, []],
        [1, 1, 1],
        "frame",
        [1, "1", 1, []],
        [1, 1, 1, {}],
        [1, 1, 1, [[]]],
        [1, 1, 1, [["req-1", 1, 0, 17, [5, "6"], "text", None, None]]],
        [1, 1, 1, [["req-1", 1, 0, 17, [5], None, None, None]]],
    ],
)
def test_what_is_no_frame_is_malformed(values: Any) -> None:
    with pytest.raises(MalformedMessage):
        codec.unpack_frame(codec.pack(values))
