"""The keys of access tokens: one signs, and those that signed before are told for a while. Pure.

Kept as text. The first line is the key that signs, 64 hex digits; each line after it is the public
half of a former one, and until when tokens of it may live, in ms since 1970. The private half of a
former key is nowhere: nobody signs with it again, whoever reads the file.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.access import SigningKey

#: Former keys whose tokens may still live; with so many the next one has to wait.
FORMER_MAX: Final = 8


class TooManyKeys(Exception):
    """Tokens of too many former keys still live; ``wait_s`` until the first of them have ended."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(
            f"tokens of {FORMER_MAX} former keys still live:"
            f" try again in {wait_s} s, or drop them all at once (--now)"
        )
        self.wait_s: Final = wait_s


@dataclass(frozen=True, slots=True)
class FormerKey:
    """It signed once; ``public`` has 32 bytes."""

    public: bytes
    until_ms: int


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The key that signs, and at most ``FORMER_MAX`` before it, the latest first."""

    private: Ed25519PrivateKey
    former: tuple[FormerKey, ...] = ()

    @classmethod
    def made(cls, seed: bytes) -> Self:
        """Of 32 random bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def parsed(cls, text: str) -> Self:
        """Raises ``ValueError``, which repeats nothing of the text."""
        signs, *others = text.splitlines() or [""]
        try:
            private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(signs))
            former = tuple(_former(line) for line in others)
        except ValueError:
            raise ValueError("it does not hold keys as this program writes them") from None
        return cls(private, former)

    @property
    def text(self) -> str:
        lines = [self.private.private_bytes_raw().hex()]
        lines += [f"{key.public.hex()} {key.until_ms}" for key in self.former]
        return "\n".join(lines)

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    @property
    def kid(self) -> str:
        """The id of the key that signs."""
        return key_id(self.public)

    def told(self, now_ms: int) -> tuple[SigningKey, ...]:
        """Whose signatures count now: the one that signs first."""
        publics = [self.public, *(key.public for key in self._living(now_ms))]
        return tuple(SigningKey(kid=key_id(public), public=public) for public in publics)

    def followed_by(self, seed: bytes, now_ms: int, grace_ms: int) -> "SigningKeys":
        """The key of ``seed`` signs now; tokens of ours count for ``grace_ms`` more.

        With 0 no token counts that was signed before, by whatever key. Raises ``TooManyKeys``.
        """
        following = SigningKeys.made(seed)
        if not grace_ms:
            return following
        living = self._living(now_ms)
        if len(living) >= FORMER_MAX:
            wait_ms = min(key.until_ms for key in living) - now_ms
            raise TooManyKeys(-(-wait_ms // 1000))
        former = (FormerKey(self.public, now_ms + grace_ms), *living)
        return SigningKeys(following.private, former)

    def signed(self, claims: Mapping[str, Any]) -> str:
        """A JWT."""
        headers = {"kid": self.kid, "typ": "at+jwt"}
        return jwt.encode(dict(claims), self.private, algorithm="EdDSA", headers=headers)

    def _living(self, now_ms: int) -> tuple[FormerKey, ...]:
        return tuple(key for key in self.former if key.until_ms > now_ms)


def key_id(public: bytes) -> str:
    """The id under which a key is told."""
    return hashlib.sha256(public).hexdigest()[:16]


def _former(line: str) -> FormerKey:
    """Raises ``ValueError``."""
    public, _, until_ms = line.partition(" ")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return FormerKey(key.public_bytes_raw(), int(until_ms))
