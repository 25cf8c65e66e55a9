"""The journal's format: inputs and outcomes of a core as packed arrays (``schemas.journal``).

Writing (the live process) and reading (replay) stand side by side here, so that they stay in step.
"""

from dataclasses import dataclass
from typing import Any

from bus import codec
from bus.errors import MalformedMessage
from bus.streams import KEPT_IN
from components.domain.outcomes import Answer, Ask, Count, Outcome, Record, Send
from schemas.message import Message


@dataclass(frozen=True, slots=True)
class EventRef:
    """An event that a stream keeps: found again by its envelope."""

    schema_id: str
    source: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The bus came back."""


Input = Message | EventRef | Tick | Resumed


def is_kept(message: Message) -> bool:
    """Does a stream keep this kind of message, so that a reference is enough?"""
    return message.schema_id in KEPT_IN


def pack_inputs(inputs: list[Input]) -> bytes:
    """The ``inputs`` field of a journal entry."""
    return codec.pack([_input_fields(i) for i in inputs])


def unpack_inputs(data: bytes) -> list[Input]:
    """What ``pack_inputs`` packed; raises ``MalformedMessage``."""
    return [_input_from(fields) for fields in codec.unpack(data)]


def _input_fields(item: Input) -> list[Any]:
    match item:
        case Tick():
            return ["t"]
        case Resumed():
            return ["p"]
        case EventRef():
            return ["r", item.schema_id, item.source, item.epoch, item.seq]
        case Message():
            return ["m", item.schema_id, codec.to_fields(item)]


def _input_from(fields: list[Any]) -> Input:
    match fields:
        case ["t"]:
            return Tick()
        case ["p"]:
            return Resumed()
        case ["r", schema_id, source, epoch, seq]:
            return EventRef(schema_id, source, epoch, seq)
        case ["m", schema_id, values]:
            return codec.from_schema_id(schema_id, values)
        case _:
            raise MalformedMessage("not a journal input")


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
