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

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A record inside a message: frozen, positional, no unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )


class Message(Part):
    """A record that crosses the bus on a subject of its own.

    ``schema_id`` reads ``noun.verb.vN``: past tense for what happened, imperative for what is
    asked.
    """

    schema_id: ClassVar[str]
