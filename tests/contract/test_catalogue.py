"""The catalogue, the classes, the subject functions, the examples and the streams agree."""

import importlib
import inspect
import pkgutil
import re

import pytest

import schemas
from bus import subjects
from bus.endpoint import matcher
from bus.streams import BUCKETS, STREAMS, Stream
from schemas import golden
from schemas.catalogue import ALL, BY_MESSAGE, BY_SCHEMA_ID, CATALOGUE, FRAMES_SUBJECT, Entry
from schemas.examples import EXAMPLES
from schemas.message import Message

ENTRIES = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.message.__name__)


def declared() -> set[type[Message]]:
    """Every message class of the package ``schemas``."""
    found: set[type[Message]] = set()
    for module in pkgutil.iter_modules(schemas.__path__):
        if module.name == "golden":
            continue
        for value in vars(importlib.import_module(f"schemas.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Message) and value is not Message:
                found.add(value)
    return found


def wire_example(entry: Entry, **tokens: str) -> str:
    """A subject of the entry with the token's own name in each place not given."""
    filled = entry.subject.format(**{t: tokens.get(t, t) for t in entry.tokens})
    return f"{subjects.PREFIX}.{filled}"


def test_every_message_class_travels() -> None:
    assert declared() == set(BY_SCHEMA_ID.values())


def test_every_message_has_an_example_and_every_example_is_valid() -> None:
    assert set(EXAMPLES) == declared()
    for message, shipped in EXAMPLES.items():
        assert message.model_validate_json(shipped.model_dump_json()) == shipped


def test_schema_ids_are_noun_verb_version_and_unique() -> None:
    pairs = [m for e in CATALOGUE for m in (e.message, e.reply) if m is not None]
    assert len(pairs) == len(BY_SCHEMA_ID)
    assert len(CATALOGUE) == len(BY_MESSAGE)
    for schema_id in BY_SCHEMA_ID:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+\.v[1-9][0-9]*", schema_id)


def test_the_golden_schemas_are_what_the_classes_say() -> None:
    assert golden.differences() == []


@ENTRIES
def test_the_subject_function_is_the_class_name_in_snake_case(entry: Entry) -> None:
    function = subjects.function_of(entry.message)
    assert tuple(inspect.signature(function).parameters) == entry.tokens
    assert function(*entry.tokens) == wire_example(entry)


@ENTRIES
def test_a_subject_function_encodes_raw_names_and_makes_patterns(entry: Entry) -> None:
    function = subjects.function_of(entry.message)
    subject = function(*["a/b.c >"] * len(entry.tokens))
    assert subject.count(".") == wire_example(entry).count(".")
    assert matcher(function(*[subjects.ANY] * len(entry.tokens)))(subject)


def test_every_subject_function_belongs_to_a_message_or_to_frames() -> None:
    functions = {
        name
        for name, value in vars(subjects).items()
        if inspect.isfunction(value)
        and value.__module__ == subjects.__name__
        and not name.startswith("_")
    }
    of_messages = {subjects.function_of(e.message).__name__ for e in CATALOGUE}
    assert functions - of_messages == {"frames", "subject_of"}
    assert subjects.frames("g", "w") == f"yard.{FRAMES_SUBJECT.format(gateway='g', worker='w')}"


@ENTRIES
def test_an_entry_makes_sense(entry: Entry) -> None:
    assert entry.kind in {"evt", "cmd", "ask", "sig"}
    assert (entry.kind == "ask") == (entry.reply is not None)
    assert entry.senders
    assert entry.readers or entry.kind == "evt", "only events are read from streams alone"
    assert {*entry.senders, *entry.readers} <= {*ALL, "connector", "operator", "client"}
    assert {entry.sender_is, entry.reader_is} - {None} <= set(entry.tokens)


def capturing(subject: str) -> list[Stream]:
    return [s for s in STREAMS if any(matcher(pattern)(subject) for pattern in s.subjects)]


@ENTRIES
def test_events_are_kept_by_exactly_one_stream_and_nothing_else_is(entry: Entry) -> None:
    assert len(capturing(wire_example(entry))) == (1 if entry.kind == "evt" else 0)


def test_frames_are_kept_in_memory_for_minutes() -> None:
    (stream,) = capturing(subjects.frames("gateway-0", "decode-0"))
    assert (stream.name, stream.storage) == ("TOKENS", "memory")
    assert stream.max_age_s <= 10 * 60


def test_content_is_kept_in_memory_only() -> None:
    (stream,) = capturing(subjects.body_published("req-1"))
    assert stream.storage == "memory"
    assert stream.per_subject_max == 1
    assert stream.message_ttl


@pytest.mark.parametrize("item", [*STREAMS, *BUCKETS], ids=lambda i: i.name)
def test_whatever_is_kept_is_bounded(item: Stream) -> None:
    config = item.config()
    assert 0 < config["max_bytes"] <= 1024**3
    assert config["deny_delete"]
    assert config["allow_direct"]
    if isinstance(item, Stream):
        assert config["max_age"] > 0
        assert config["discard"] == "old", "history shortens itself before a disk is full"
        assert config["no_ack"]
        assert config["deny_purge"]


def test_a_prefix_of_ones_own_moves_every_stream() -> None:
    for stream in STREAMS:
        assert all(s.startswith("depot.") for s in stream.config(prefix="depot")["subjects"])
