"""Whatever stood on a stream is told in a line, and never with content."""

import json
from typing import Any

import pytest

from bus import codec, subjects
from components.replay.describe import told
from schemas.body import BodyPublished
from schemas.codes import RequestStep
from schemas.examples import EXAMPLES, example
from schemas.fleet import FleetExpired, FleetRegistered
from schemas.frames import Entry
from schemas.journal import JournalAppended
from schemas.message import Message
from schemas.request import RequestEvent, RequestEventsBatched

SECRET = "the patient is called Anna"
FRAMES = subjects.frames("gateway-0", "decode-0")


def stored(message: Message) -> bytes:
    return codec.encode(message, traceparent=None, source="router-0", epoch=7, seq=3)


@pytest.mark.parametrize("message", EXAMPLES.values(), ids=lambda m: m.schema_id)
def test_every_message_has_a_line_and_goes_out_as_json(message: Message):
    for one in told("yard.evt.x", stored(message)):
        assert one.what
        assert "\n" not in one.text
        assert json.loads(json.dumps(one.plain))["schema"] == message.schema_id


def test_a_batch_is_told_step_by_step():
    steps: tuple[RequestStep, ...] = ("accepted", "scheduled")
    events = tuple(
        RequestEvent(request_id="req-1", step=step, attempt=1, at_ms=5, seq=n, detail={"place": 3})
        for n, step in enumerate(steps)
    )
    found = told("yard.evt.x", stored(RequestEventsBatched(events=events)))
    assert [one.what for one in found] == ["accepted", "scheduled"]
    assert [one.source for one in found] == ["router-0", "router-0"]
    assert found[0].request_id == "req-1"
    assert found[0].text == "req-1 attempt=1 place=3"


def test_a_body_is_told_by_its_length():
    (one,) = told("yard.evt.x", stored(BodyPublished(request_id="req-1", body=SECRET.encode())))
    assert f"({len(SECRET)} bytes)" in one.text
    assert "Anna" not in one.text + json.dumps(one.plain)


def frame(*entries: Any) -> bytes:
    return codec.pack_frame(1, 9, entries)


def test_a_token_frame_is_told_by_its_lengths():
    entry: Entry = ("req-1", 2, 0, 5, [1, 2, 3], SECRET, {"logprobs": [1]}, ["length", None, 0])
    (one,) = told(FRAMES, frame(entry))
    assert (one.what, one.source, one.request_id) == ("tokens", "decode-0", "req-1")
    assert f"first=5 tokens=3 chars={len(SECRET)} finish=length attempt=2" in one.text
    assert one.plain["extra"] == ["logprobs"]
    assert "Anna" not in one.text + json.dumps(one.plain)


def test_a_high_water_entry_is_called_so():
    (one,) = told(FRAMES, frame(("req-1", 1, 0, 17, [], "", None, None)))
    assert one.what == "high_water"


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x90", b"plain text", codec.pack(["no.such.v1", None, "x", 1, 1])],
)
def test_what_is_no_message_is_told_by_its_length(data: bytes):
    (one,) = told("yard.evt.x", data)
    assert one.what == "unknown"
    assert one.text.startswith(f"{len(data)} bytes")


@pytest.mark.parametrize(
    "data", [b"\xc1", codec.pack([1, 2, 3, [["short"]]]), codec.pack([1, 2, 3, 4])]
)
def test_a_frame_that_is_none_is_told_by_its_length(data: bytes):
    (one,) = told(FRAMES, data)
    assert one.what == "unknown"


def test_a_journal_entry_is_told_by_the_kinds_of_its_inputs():
    inputs = codec.pack(
        [
            ["m", "request.schedule.v1", [SECRET]],
            ["r", "engine.load_reported.v1", "decode-0", 5, 44],
            ["t"],
        ]
    )
    (one,) = told("yard.evt.x", stored(example(JournalAppended, inputs=inputs)))
    kinds = ["request.schedule.v1", "engine.load_reported.v1 decode-0@5#44", "tick"]
    assert one.plain["inputs"] == kinds
    assert ", ".join(kinds) in one.text
    assert "Anna" not in one.text + json.dumps(one.plain)


def test_inputs_of_another_form_do_not_stop_the_telling():
    (one,) = told("yard.evt.x", stored(example(JournalAppended, inputs=b"\xc1")))
    assert one.plain["inputs"] == ["1 bytes that are no list of inputs"]


def test_engines_elsewhere_are_told_with_role_and_addresses():
    (one,) = told("yard.evt.x", stored(example(FleetRegistered)))
    assert one.text == "10.0.0.5:20003 registered by ping as prefill, KV at 10.0.0.5:21001"
    (one,) = told("yard.evt.x", stored(example(FleetRegistered, kv_address="", by="static")))
    assert one.text == "10.0.0.5:20003 registered by static as prefill"
    (one,) = told("yard.evt.x", stored(example(FleetExpired)))
    assert one.text == "10.0.0.5:20003 (prefill) expired, 10250 ms silent"
