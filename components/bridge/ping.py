"""The ping of a P2P engine (seed 1): one msgpack map of three texts, read strictly. Pure.

A prefill engine (``type`` P) or decode engine (D) says every 3 s where it serves HTTP and where its
KV connector listens. Nobody answers. Other fields are tolerated, so that a newer engine is heard.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgpack

from components.bridge.address import ADDRESS_CHARS_MAX, BadAddress, normal
from schemas.codes import Role

PING_BYTES_MAX: Final = 1024
FIELDS_MAX: Final = 16

#: Why a ping was refused. For programs: counters are named after these.
Refusal = Literal[
    "too_long", "not_msgpack", "not_a_map", "field_missing", "wrong_type", "unknown_type", "address"
]

_ROLES: Final[dict[str, Role]] = {"P": "prefill", "D": "decode"}


class BadPing(ValueError):
    """The bytes are no ping: count it under ``reason`` and drop it."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason: Final[Refusal] = reason


@dataclass(frozen=True, slots=True)
class Ping:
    """Who is there. Addresses are in the form that ``address.normal`` gives."""

    role: Role
    http_address: str
    kv_address: str


def read(data: bytes) -> Ping:
    """The ping in ``data``; raises ``BadPing`` whatever the bytes are."""
    if len(data) > PING_BYTES_MAX:
        raise BadPing("too_long")
    values = _unpacked(data)
    if type(values) is not dict:
        raise BadPing("not_a_map")
    kind, http, kv = (_text(values, name) for name in ("type", "http_address", "zmq_address"))
    if kind not in _ROLES:
        raise BadPing("unknown_type")
    try:
        return Ping(_ROLES[kind], normal(http), normal(kv))
    except BadAddress:
        raise BadPing("address") from None


def _unpacked(data: bytes) -> Any:
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=True,
            max_str_len=ADDRESS_CHARS_MAX,
            max_bin_len=0,
            max_array_len=0,
            max_map_len=FIELDS_MAX,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException):
        # Too long, too deep, cut off, more than one object, no UTF-8.
        raise BadPing("not_msgpack") from None


def _text(values: dict[Any, Any], name: str) -> str:
    if name not in values:
        raise BadPing("field_missing")
    value = values[name]
    if type(value) is not str:
        raise BadPing("wrong_type")
    return value
