"""The journal's format: inputs and outcomes of a core as packed arrays (``schemas.journal``).

Writing (the live process) and reading (replay) stand side by side here, so that they stay in step.
"""

from typing import Any, Final

import msgspec

from bus import codec
from bus.errors import MalformedMessage
from bus.streams import KEPT_IN
from components.domain.outcomes import Answer, Ask, Count, Outcome, Record, Send
from schemas.message import Message


class EventRef(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """An event that a stream keeps: found again by its envelope."""

    schema_id: str
    source: str
    epoch: int
    seq: int


class Tick(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """Time passed."""


class Resumed(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """The bus came back."""


class _Whole(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """A message that no stream keeps, its fields packed."""

    schema_id: str
    fields: msgspec.Raw


Input = Message | EventRef | Tick | Resumed


def is_kept(message: Message) -> bool:
    """Does a stream keep this kind of message, so that a reference is enough?"""
    return message.schema_id in KEPT_IN


def pack_inputs(inputs: list[Input]) -> bytes:
    """The ``inputs`` field of a journal entry."""
    return msgspec.msgpack.encode([_packed(i) for i in inputs])


def unpack_inputs(data: bytes) -> list[Input]:
    """What ``pack_inputs`` packed; raises ``MalformedMessage``."""
    try:
        items = _inputs.decode(data)
    except codec.BAD_BYTES as error:
        raise MalformedMessage(f"not journal inputs: {error}") from error
    return [_unpacked(item) for item in items]


_inputs: Final = msgspec.msgpack.Decoder(list[EventRef | Tick | Resumed | _Whole])


def _packed(item: Input) -> EventRef | Tick | Resumed | _Whole:
    if isinstance(item, Message):
        return _Whole(item.schema_id, codec.encode_bare(item))
    return item


def _unpacked(item: EventRef | Tick | Resumed | _Whole) -> Input:
    if isinstance(item, _Whole):
        return codec.decode_bare(item.schema_id, item.fields)
    return item


def pack_outcomes(outcomes: list[Outcome]) -> bytes:
    """The ``outcomes`` field: ``[what, key, digest]`` each; counters are no decisions."""
    return codec.pack([brief(o) for o in outcomes if not isinstance(o, Count)])


def unpack_outcomes(data: bytes) -> list[list[Any]]:
    """What ``pack_outcomes`` packed."""
    result: list[list[Any]] = codec.unpack(data)
    return result


def brief(outcome: Outcome) -> list[Any]:
    """``[what, key, digest]``: enough to name an outcome and to notice any change in it."""
    match outcome:
        case Record():
            step: list[Any] = [outcome.step, outcome.attempt, outcome.trace, outcome.detail]
            return [f"record.{outcome.step}", outcome.request_id, codec.digest(step)]
        case Send() | Ask() | Answer():
            message = outcome.message
            sent: list[Any] = [message.schema_id, outcome.to, message]
            return [message.schema_id, _key(outcome), codec.digest(sent)]
        case Count():
            return ["count", outcome.name, b""]


def _key(outcome: Send | Ask | Answer) -> str:
    message = outcome.message
    key = getattr(message, "request_id", None)
    if key is None and (card := getattr(message, "card", None)) is not None:
        key = card.request_id
    if key is None:
        key = getattr(message, "window", None)
    return "/".join(outcome.to) if key is None else str(key)
