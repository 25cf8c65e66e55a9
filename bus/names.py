"""Names as subject tokens: reversible, so that a permission or a capture can be read back.

Letters, digits, ``-`` and ``_`` stand for themselves; every other byte of the UTF-8 form becomes
``=XX``. The empty name is ``=``. Nothing a user chooses (a model called ``a/b.c``, an engine id
that is a URL, ``>``) can therefore widen or split a subject.
"""

import re
from typing import Final

from bus.errors import BadName

NAME_BYTES_MAX: Final = 256
_SAFE: Final = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE_BYTE: Final = re.compile(rb"[^A-Za-z0-9_-]")
_ESCAPE: Final = re.compile(rb"=([0-9A-F]{2})")


def encode_name(name: str) -> str:
    """The subject token for ``name``; raises ``BadName`` above 256 bytes."""
    if _SAFE.fullmatch(name) and len(name) <= NAME_BYTES_MAX:
        return name
    raw = name.encode()
    if len(raw) > NAME_BYTES_MAX:
        raise BadName(f"a name of {len(raw)} bytes is over the limit of {NAME_BYTES_MAX}")
    return _UNSAFE_BYTE.sub(lambda m: b"=%02X" % m[0][0], raw).decode() or "="


def decode_name(token: str) -> str:
    """The name behind a subject token."""
    if "=" not in token:
        return token
    if token == "=":  # noqa: S105  (a subject token, not a secret)
        return ""
    return _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), token.encode()).decode()
