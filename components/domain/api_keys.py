"""How an API key is written: ``sy-<id>-<secret>``, and what of it may be told.

The id says which key it is and is no secret; of the secret only its SHA-256 leaves whoever holds
it.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

#: Whatever begins so claims to be a key of ours.
PREFIX: Final = "sy-"
#: 32 random bytes, as ``base64url`` without padding writes them.
_FORM: Final = re.compile(r"sy-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Shown:
    """A key that somebody holds, as it may be told to others."""

    key_id: str
    digest: bytes


def written(key_id: str, secret: str) -> str:
    """The text of a key: 12 hexadecimal digits, and 43 characters of base64url."""
    return f"{PREFIX}{key_id}-{secret}"


def read(text: str) -> Shown | None:
    """What a key's text says; None for what is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    return Shown(found[1], hashlib.sha256(found[2].encode()).digest())
