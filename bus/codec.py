"""Messages to bytes and back: the one file that knows msgpack.

Fields are positional, so an object costs its values and no names. Decoding checks the type of each
value and nothing more (a few hundred nanoseconds where pydantic takes several microseconds), and
raises ``MalformedMessage`` instead of building a broken object. Trailing fields that the class does
not know are ignored and missing ones take their defaults: that is what additive change means.
"""

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, cast

import msgpack
import xxhash

from bus.errors import MalformedMessage
from schemas.catalogue import BY_SCHEMA_ID
from schemas.frames import FRAME_LAYOUT, Entry
from schemas.message import Message, Part

P = TypeVar("P", bound=Part)
_Convert = Callable[[Any], Any]
_REQUIRED: Any = object()

pack: Callable[[Any], bytes] = msgpack.packb


def unpack(data: bytes) -> Any:
    """Plain values from bytes; raises ``MalformedMessage``."""
    try:
        # Lengths are bounded by len(data), which the server's payload limit bounds.
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"not msgpack: {type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class Decoded:
    """A message and its envelope."""

    message: Message
    traceparent: str | None
    source: str
    epoch: int
    seq: int


def encode(message: Message, *, traceparent: str | None, source: str, epoch: int, seq: int) -> bytes:
    """The wire form of ``message``."""
    return pack([message.schema_id, traceparent, source, epoch, seq, *to_fields(message)])


def decode(data: bytes) -> Decoded:
    """The message in ``data``, of whatever class its schema id names; raises ``MalformedMessage``."""
    values = unpack(data)
    if type(values) is not list or len(values) < 5:
        raise MalformedMessage("not an envelope")
    schema_id, traceparent, source, epoch, seq = values[:5]
    if type(source) is not str or type(epoch) is not int or type(seq) is not int:
        raise MalformedMessage("not an envelope")
    if traceparent is not None and type(traceparent) is not str:
        raise MalformedMessage("traceparent is not a string")
    return Decoded(from_schema_id(schema_id, values[5:]), traceparent, source, epoch, seq)


def from_schema_id(schema_id: Any, fields: Sequence[Any]) -> Message:
    """The message of class ``schema_id`` from its fields; raises ``MalformedMessage``."""
    cls = BY_SCHEMA_ID.get(schema_id) if type(schema_id) is str else None
    if cls is None:
        raise MalformedMessage(f"unknown schema {str(schema_id)[:64]!r}")
    return from_fields(cls, fields)


def digest(value: Any) -> bytes:
    """8 bytes that change when anything in the plain ``value`` changes."""
    return xxhash.xxh3_64_digest(pack(value))


# Parts to lists and back, by a plan made once per class.


def to_fields(part: Part) -> list[Any]:
    """The values of ``part`` in order, nested parts as lists."""
    values = part.__dict__
    return [values[n] if w is None else w(values[n]) for n, w in _plan(type(part)).writers]


def from_fields(cls: type[P], fields: Sequence[Any]) -> P:
    """Rebuild a ``cls`` without pydantic; raises ``MalformedMessage``."""
    plan = _plan(cls)
    given = len(fields)
    values: dict[str, Any] = {}
    for place, (name, read, default) in enumerate(plan.readers):
        if place < given:
            try:
                values[name] = read(fields[place])
            except (TypeError, ValueError, KeyError) as error:
                raise MalformedMessage(f"{cls.__name__}.{name}: {error}") from error
        elif default is _REQUIRED:
            raise MalformedMessage(f"{cls.__name__}.{name} is missing")
        else:
            values[name] = default
    part = cls.__new__(cls)
    # What pydantic's own __init__ sets; a frozen model has no other way in.
    object.__setattr__(part, "__dict__", values)
    object.__setattr__(part, "__pydantic_fields_set__", plan.names)
    object.__setattr__(part, "__pydantic_extra__", None)
    object.__setattr__(part, "__pydantic_private__", None)
    return part


@dataclass(frozen=True, slots=True)
class _Plan:
    names: frozenset[str]
    writers: tuple[tuple[str, _Convert | None], ...]
    readers: tuple[tuple[str, _Convert, Any], ...]


@cache
def _plan(cls: type[Part]) -> _Plan:
    writers, readers = [], []
    for name, field in cls.model_fields.items():
        default = (
            _REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        )
        writers.append((name, _writer(field.annotation)))
        readers.append((name, _reader(field.annotation), default))
    return _Plan(frozenset(cls.model_fields), tuple(writers), tuple(readers))


def _writer(annotation: Any) -> _Convert | None:
    """How to turn a value into plain msgpack values; None when it already is one."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return to_fields
    if origin is tuple:
        inner = _writer(args[0])
        return list if inner is None else lambda items: [inner(i) for i in items]
    if origin in (types.UnionType, typing.Union):
        inner = _writer(_without_none(args))
        return None if inner is None else lambda v: None if v is None else inner(v)
    return None


def _reader(annotation: Any) -> _Convert:
    """How to check and rebuild a value; raises TypeError or ValueError."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Part):
        part = annotation
        return lambda v: from_fields(part, _checked(v, (list,)))
    if origin is tuple:
        item = _reader(args[0])
        return lambda v: tuple([item(i) for i in _checked(v, (list,))])
    if origin in (types.UnionType, typing.Union):
        inner = _reader(_without_none(args))
        return lambda v: None if v is None else inner(v)
    if origin is Literal:
        allowed = frozenset(args)
        return lambda v: _one_of(v, allowed)
    if origin is dict:
        return lambda v: _checked(v, (dict,))
    scalars = {str: (str,), int: (int,), bool: (bool,), bytes: (bytes,), float: (float, int)}
    accepted = cast("dict[Any, tuple[type, ...]]", scalars)[annotation]
    return lambda v: _checked(v, accepted)


def _without_none(args: tuple[Any, ...]) -> Any:
    rest = [a for a in args if a is not type(None)]
    assert len(rest) == 1, "a field is one type, or that type and None"
    return rest[0]


def _checked(value: Any, accepted: tuple[type, ...]) -> Any:
    # type() and not isinstance(): True must not pass as an int.
    if type(value) not in accepted:
        raise TypeError(f"a {type(value).__name__} where {accepted[0].__name__} belongs")
    return value


def _one_of(value: Any, allowed: frozenset[Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"{str(value)[:40]!r} is not in the list")
    return value


# Token frames.


def pack_frame(worker_epoch: int, frame_seq: int, entries: Sequence[Entry]) -> bytes:
    """One frame of at most ``ENTRIES_MAX`` entries (the caller splits)."""
    return pack([FRAME_LAYOUT, worker_epoch, frame_seq, entries])


def unpack_frame(data: bytes) -> tuple[int, int, list[list[Any]]]:
    """``(worker epoch, frame seq, entries)``; raises ``MalformedMessage``."""
    values = unpack(data)
    if type(values) is not list or len(values) < 4 or values[0] != FRAME_LAYOUT:
        raise MalformedMessage("not a token frame")
    return values[1], values[2], values[3]
