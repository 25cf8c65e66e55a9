"""Messages to bytes and back, as msgpack.

Fields are positional, so an object costs its values and no names. Each message class gets a shadow,
an array-like ``msgspec`` struct that is made from its annotations: that one parses and checks the
types of all values, in C, and its values become the message without a second look (pydantic's
constraints are for the edges). Whatever is wrong is a ``MalformedMessage`` and no object. Trailing
fields that the class does not know are ignored and missing ones take their defaults: that is what
additive change means. Plain values (frames, journals) need no types: ``msgpack`` packs those.
"""

import operator
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, Literal, NamedTuple, TypeVar, Union

import msgpack
import msgspec
import xxhash
from pydantic.fields import FieldInfo

from bus.errors import MalformedMessage
from schemas.catalogue import BY_SCHEMA_ID
from schemas.frames import FRAME_LAYOUT, Entry
from schemas.message import Message, Part

P = TypeVar("P", bound=Part)
_Values = dict[str, Any]


class Decoded(NamedTuple):
    """A message and its envelope."""

    message: Message
    traceparent: str | None
    source: str
    epoch: int
    seq: int


def pack(value: Any) -> bytes:
    """Plain values (lists, maps, strings, bytes, numbers, None) to bytes."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(data: bytes) -> Any:
    """Plain values from bytes; raises ``MalformedMessage``."""
    try:
        # Lengths inside are bounded by len(data), which the bus's payload limit bounds.
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"not msgpack: {type(error).__name__}") from error


def digest(value: Any) -> bytes:
    """8 bytes that change when anything in ``value`` changes: plain values, and parts in them."""
    return xxhash.xxh3_64_digest(_encoder.encode(value))


def encode(
    message: Message, *, traceparent: str | None, source: str, epoch: int, seq: int
) -> bytes:
    """The wire form of ``message``."""
    values = _values_of(type(message))(message.__dict__)
    return _encoder.encode([message.schema_id, traceparent, source, epoch, seq, *values])


def decode(data: bytes) -> Decoded:
    """The message in ``data``, of the class its schema id names; raises ``MalformedMessage``."""
    try:
        shadow = _message_decoder().decode(data)
    except BAD_BYTES as error:
        raise MalformedMessage(str(error)) from error
    values = msgspec.structs.asdict(shadow)
    take = values.pop
    envelope = (take(_TRACE), take(_SOURCE), take(_EPOCH), take(_SEQ))
    return Decoded(_rebuild(_class_of(type(shadow)), values), *envelope)


def decode_bare(schema_id: str, fields: bytes | msgspec.Raw) -> Message:
    """The message of class ``schema_id`` from its packed fields; raises ``MalformedMessage``."""
    cls = BY_SCHEMA_ID.get(schema_id)
    if cls is None:
        raise MalformedMessage(f"unknown schema {schema_id[:64]!r}")
    try:
        shadow = _bare_decoder(cls).decode(fields)
    except BAD_BYTES as error:
        raise MalformedMessage(f"{cls.__name__}: {error}") from error
    return _rebuild(cls, msgspec.structs.asdict(shadow))


def encode_bare(message: Message) -> msgspec.Raw:
    """The packed fields of ``message``, for ``decode_bare``."""
    return msgspec.Raw(_encoder.encode(_values_of(type(message))(message.__dict__)))


# How to think about the rest: a class has a *shadow* (what msgspec parses), and a shadow's values
# are *rebuilt* into an instance. Both are worked out from the annotations, once per class.

#: What msgspec raises for bytes that are not what they should be.
BAD_BYTES: Final = (msgspec.MsgspecError, ValueError, RecursionError)

#: The envelope stands in front of a message's fields; no field may have these names.
_TRACE, _SOURCE, _EPOCH, _SEQ = (f"envelope_{n}" for n in ("trace", "source", "epoch", "seq"))
_ENVELOPE: Final[tuple[tuple[str, Any], ...]] = (
    (_TRACE, str | None),
    (_SOURCE, str),
    (_EPOCH, int),
    (_SEQ, int),
)
_UNIONS: Final = (types.UnionType, Union)


def _encodable(value: Any) -> Any:
    if isinstance(value, Part):
        return _values_of(type(value))(value.__dict__)
    raise TypeError(f"a {type(value).__name__} cannot be packed")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encodable)


@cache
def _message_decoder() -> msgspec.msgpack.Decoder[Any]:
    """Parses any message: the schema id, the first value, tells which shadow it is."""
    shadows = tuple(_message_shadow(cls) for cls in BY_SCHEMA_ID.values())
    return msgspec.msgpack.Decoder(Union[shadows])  # noqa: UP007  (made from a tuple)


@cache
def _bare_decoder(cls: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(_shadow(cls))


@cache
def _message_shadow(cls: type[Message]) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        cls.__name__,
        [*_ENVELOPE, *_shadow_fields(cls)],
        bases=(_Shadow,),
        tag=cls.schema_id,
        array_like=True,
        kw_only=True,  # lets a required field follow one with a default; the order stays
        namespace={"shadowed": cls},
    )


@cache
def _shadow(cls: type[Part]) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        cls.__name__,
        _shadow_fields(cls),
        bases=(_Shadow,),
        array_like=True,
        kw_only=True,
        namespace={"shadowed": cls},
    )


class _Shadow(msgspec.Struct):
    shadowed: typing.ClassVar[type[Part]] = Part


def _class_of(shadow: type[_Shadow]) -> Any:
    return shadow.shadowed


def _shadow_fields(cls: type[Part]) -> list[Any]:
    return [
        (name, _shadow_type(field.annotation), *_shadow_default(field))
        for name, field in cls.model_fields.items()
    ]


def _shadow_type(annotation: Any) -> Any:
    """The annotation with shadows in place of parts."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return _shadow(annotation)
    if origin is tuple:
        return types.GenericAlias(tuple, (_shadow_type(args[0]), ...))
    if origin in _UNIONS:
        return Union[tuple(_shadow_type(a) for a in args)]  # noqa: UP007
    assert origin in (None, dict, Literal), f"{annotation} has no wire form"
    return annotation


def _shadow_default(field: FieldInfo) -> tuple[Any, ...]:
    if field.is_required():
        return ()
    if field.default_factory is not None:
        make: Any = field.default_factory
        return (msgspec.field(default_factory=make),)
    return (field.default,)


def _rebuild(cls: type[P], values: _Values) -> P:
    """An instance with ``values``; nested shadows become parts."""
    for name in _plan(cls):
        values[name] = _rebuilt(values[name])
    return cls.trusted(values)


def _rebuilt(value: Any) -> Any:
    if isinstance(value, _Shadow):
        return _rebuild(_class_of(type(value)), msgspec.structs.asdict(value))
    if isinstance(value, tuple):
        return tuple([_rebuilt(item) for item in value])
    return value


@cache
def _plan(cls: type[Part]) -> tuple[str, ...]:
    """Names of the fields that may hold parts."""
    return tuple(n for n, f in cls.model_fields.items() if _holds_parts(f.annotation))


def _holds_parts(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return True
    return any(_holds_parts(inner) for inner in typing.get_args(annotation))


@cache
def _values_of(cls: type[Part]) -> Callable[[_Values], Sequence[Any]]:
    """Gives an instance's values in the order of the class."""
    names = tuple(cls.model_fields)
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: [values[name] for name in names]


# Token frames.


def pack_frame(worker_epoch: int, frame_seq: int, entries: Sequence[Entry]) -> bytes:
    """One frame of at most ``ENTRIES_MAX`` entries (the caller splits)."""
    return pack([FRAME_LAYOUT, worker_epoch, frame_seq, entries])


def unpack_frame(data: bytes) -> tuple[int, int, list[Entry]]:
    """``(worker epoch, frame seq, entries)``; raises ``MalformedMessage``.

    Types are checked; what ``extra`` and ``finish`` hold is not.
    """
    try:
        layout, worker_epoch, frame_seq, entries = _frame_decoder.decode(data)
    except BAD_BYTES as error:
        raise MalformedMessage(f"not a token frame: {error}") from error
    if layout != FRAME_LAYOUT:
        raise MalformedMessage(f"a token frame of layout {layout}")
    return worker_epoch, frame_seq, entries


_frame_decoder: Final = msgspec.msgpack.Decoder(tuple[int, int, int, list[Entry]])
