"""The packed body of a request (layout: ``schemas.body``): written by gateways, read by workers.

Conventions that both sides keep, so that a continuation is exact:

- Token indices count from 0 over all attempts of a choice: the first id that an attempt may emit
  for a choice has the index ``len(emitted ids)``, and ``max_tokens`` counts emitted ids too.
- A choice whose entry says *finished* needs no more tokens. One without an entry starts at 0.
- The text that an engine has released is a function of the ids alone. An attempt that starts from
  emitted ids brings its detokeniser (and its search for stop texts) to the state after those ids
  and releases only what comes later, so nothing is said twice and nothing that lagged is lost.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
from pydantic import ValidationError

from schemas.body import BODY_LAYOUT, SamplingParameters
from schemas.message import Part

TOKEN_ID_BYTES: Final = 4


class MalformedBody(ValueError):
    """The bytes are no body of a layout that we know: refuse the attempt."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """What the client of a choice already has, or is sure to get."""

    token_ids: Sequence[int]
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """One request's content. ``emitted`` has no entry for a choice without tokens."""

    prompt_token_ids: Sequence[int]
    sampling: SamplingParameters
    emitted: Mapping[int, Emitted] = field(default_factory=dict)


def pack_token_ids(token_ids: Sequence[int]) -> bytes:
    """Four bytes each, little-endian. Raises ValueError for an id outside uint32."""
    try:
        return struct.pack(f"<{len(token_ids)}I", *token_ids)
    except struct.error as error:
        raise ValueError(f"token ids must be integers from 0 to 2**32 - 1: {error}") from error


def unpack_token_ids(data: bytes) -> tuple[int, ...]:
    """Inverse of `pack_token_ids`. Raises ValueError when a part of an id is missing."""
    if len(data) % TOKEN_ID_BYTES:
        raise ValueError(f"{len(data)} bytes are not a whole number of token ids")
    return struct.unpack(f"<{len(data) // TOKEN_ID_BYTES}I", data)


def encode_body(body: Body) -> bytes:
    """The bytes that travel."""
    prompt = pack_token_ids(body.prompt_token_ids)
    values = [BODY_LAYOUT, prompt, _emitted_fields(body.emitted), _changed(body.sampling)]
    return _pack(values)


def decode_body(data: bytes) -> Body:
    """Inverse of `encode_body`; sampling is validated. Raises ``MalformedBody``."""
    try:
        # Lengths inside are bounded by len(data), which the bus's payload limit bounds.
        layout, prompt, emitted, sampling = _unpack(data)[:4]
        if layout != BODY_LAYOUT:
            raise MalformedBody(f"body layout {layout!r}, known is {BODY_LAYOUT}")
        return Body(
            prompt_token_ids=unpack_token_ids(prompt),
            sampling=SamplingParameters.model_validate(sampling),
            emitted=dict(map(_emitted, emitted)),
        )
    except MalformedBody:
        raise
    except ValidationError as error:
        fields = [".".join(map(str, e["loc"])) for e in error.errors()]
        raise MalformedBody(f"sampling parameters out of range: {fields}") from error
    except (ValueError, TypeError, IndexError, KeyError, msgpack.UnpackException) as error:
        raise MalformedBody(f"not a body: {type(error).__name__}") from error


def with_emitted(body: bytes, emitted: Mapping[int, Emitted]) -> bytes:
    """The same packed body for a continuation; prompt and sampling are not unpacked."""
    values = _unpack(body)
    values[2] = _emitted_fields(emitted)
    return _pack(values)


def _pack(values: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(values)
    return packed


def _unpack(data: bytes) -> list[Any]:
    values: list[Any] = msgpack.unpackb(data)
    return values


def _emitted_fields(emitted: Mapping[int, Emitted]) -> list[list[Any]]:
    """An entry is ``[choice, ids]``, or ``[choice, ids, true]`` for a finished choice."""
    return [
        [choice, pack_token_ids(e.token_ids), *([True] if e.finished else [])]
        for choice, e in sorted(emitted.items())
    ]


def _emitted(entry: list[Any]) -> tuple[int, Emitted]:
    choice, token_ids = entry[:2]
    if type(choice) is not int:
        raise MalformedBody("a choice that is no number")
    return choice, Emitted(unpack_token_ids(token_ids), len(entry) > 2 and entry[2] is True)


def _changed(sampling: SamplingParameters) -> dict[str, Any]:
    """Only what differs from the default: most requests change two or three parameters."""
    values = sampling.__dict__
    return {
        name: _plain(values[name])
        for name, parameter in SamplingParameters.model_fields.items()
        if values[name] != parameter.default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.model_dump(exclude_defaults=True) if isinstance(value, Part) else value
