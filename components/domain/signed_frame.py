"""A datagram that proves who sent it, and that it is new: an HMAC-SHA256 frame around any payload.

    offset  bytes
    0       4     b"SWY1"
    4       1     length k of the key id
    5       8     epoch: the sender's start, ms since 1970, big-endian as all numbers here
    13      8     seq: counts the sender's datagrams of this epoch, from 1
    21      8     sent_ms: the sender's wall clock
    29      2     length n of the payload
    31      k     key id, ASCII
    31+k    n     payload
    31+k+n  32    HMAC-SHA256 over all before it, under the key of that id

It gives integrity and freshness, no secrecy. Pure.
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

MAGIC: Final = b"SWY1"
KEY_BYTES_MIN: Final = 32
KEY_ID_BYTES_MAX: Final = 32
_HEAD: Final = struct.Struct(">4sBQQQH")
_MAC_BYTES: Final = hashlib.sha256().digest_size

#: Why a frame was refused. For programs: counters are named after these.
FrameRefusal = Literal["not_a_frame", "unknown_key", "forged"]


class BadFrame(ValueError):
    """The bytes are no frame of somebody who has a key; count it under ``reason``."""

    def __init__(self, reason: FrameRefusal) -> None:
        super().__init__(reason)
        self.reason: Final[FrameRefusal] = reason


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose HMAC was right; two with one ``mac`` are the same frame."""

    key_id: str
    epoch: int
    seq: int
    sent_ms: int
    payload: bytes
    mac: bytes


def is_frame(data: bytes) -> bool:
    """Does it say to be one? A JSON object never begins so."""
    return data.startswith(MAGIC)


def sign(payload: bytes, *, key_id: str, key: bytes, epoch: int, seq: int, sent_ms: int) -> bytes:
    """The frame's bytes. Raises ``ValueError`` for a key id or payload that does not fit."""
    named = key_id.encode("ascii")
    if not 0 < len(named) <= KEY_ID_BYTES_MAX:
        raise ValueError(f"a key id has 1 to {KEY_ID_BYTES_MAX} characters")
    if len(payload) > 0xFFFF:
        raise ValueError("a payload has at most 65,535 bytes")
    head = _HEAD.pack(MAGIC, len(named), epoch, seq, sent_ms, len(payload))
    said = head + named + payload
    return said + hmac.digest(key, said, "sha256")


def verify(data: bytes, keys: Mapping[str, bytes]) -> Frame:
    """The frame in ``data``, signed under one of ``keys``; raises ``BadFrame``, whatever it is."""
    if len(data) < _HEAD.size + _MAC_BYTES:
        raise BadFrame("not_a_frame")
    magic, named, epoch, seq, sent_ms, length = _HEAD.unpack_from(data)
    end = _HEAD.size + named + length
    if magic != MAGIC or end + _MAC_BYTES != len(data) or not 0 < named <= KEY_ID_BYTES_MAX:
        raise BadFrame("not_a_frame")
    key_id = data[_HEAD.size : _HEAD.size + named].decode("latin-1")
    key = keys.get(key_id)
    if key is None:
        raise BadFrame("unknown_key")
    mac = data[end:]
    if not hmac.compare_digest(hmac.digest(key, data[:end], "sha256"), mac):
        raise BadFrame("forged")
    return Frame(key_id, epoch, seq, sent_ms, data[end - length : end], mac)


class BadKeys(ValueError):
    """A file of keys that cannot be used; the message says why."""


def parse_keys(text: str) -> dict[str, bytes]:
    """Lines ``KEY_ID HEX``; the first is the one that signs. Raises ``BadKeys``.

    Two keys at a time let a key be changed without a gap: receivers get the new one first, then
    senders, then the old one goes.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2 or not words[0].isascii() or len(words[0]) > KEY_ID_BYTES_MAX:
            raise BadKeys(f"line {number} is not KEY_ID HEX")
        try:
            key = bytes.fromhex(words[1])
        except ValueError:
            raise BadKeys(f"line {number}: the key is not hexadecimal") from None
        if len(key) < KEY_BYTES_MIN:
            raise BadKeys(f"line {number}: a key has at least {KEY_BYTES_MIN} bytes")
        if words[0] in keys:
            raise BadKeys(f"line {number}: {words[0]} stands there twice")
        keys[words[0]] = key
    if not keys:
        raise BadKeys("it holds no key")
    return keys
