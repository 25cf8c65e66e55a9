"""What all messages have in common.

A message travels as one positional msgpack array, without NATS headers:

    [schema id, traceparent | nil, source, epoch, seq, field 1, field 2, ...]

``source`` is the sending process, ``epoch`` its start (ms since 1970), ``seq`` counts from 1 per
(source, epoch, schema id), so that a reader of one kind of message sees gaps. Fields stand in the
order of the class; a ``Part`` inside a message is an array in the same manner.

Additive change happens at the end, with a default; anything else is a new class with a new version.
Inside the fleet the codec rebuilds these objects without pydantic; at the edges (HTTP, UDP, foreign
clients, files) they are validated by it.
"""

from functools import cache
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A record inside a message: frozen, positional, no unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )

    @classmethod
    def trusted(cls, values: dict[str, Any]) -> Self:
        """An instance of ``values``: every field, in order, of its type. Nothing is checked.

        For what was just parsed field by field, where a check more would cost more than the rest.
        """
        part = object.__new__(cls)
        # What pydantic's own __init__ sets; a frozen model has no other way in.
        _set_dict(part, "__dict__", values)
        _set_fields_set(part, _names(cls).copy())
        _set_extra(part, None)
        _set_private(part, None)
        return part


class Message(Part):
    """A record that crosses the bus on a subject of its own.

    ``schema_id`` reads ``noun.verb.vN``: past tense for what happened, imperative for what is
    asked.
    """

    schema_id: ClassVar[str]


@cache
def _names(cls: type[Part]) -> set[str]:
    return set(cls.model_fields)


_set_dict: Final = object.__setattr__
_set_fields_set, _set_extra, _set_private = (
    BaseModel.__dict__[slot].__set__
    for slot in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
