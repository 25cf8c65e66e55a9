"""Whose token is this? Checked here, against public keys that the registry tells. No secrets.

The algorithm and the key are pinned: only Ed25519, only keys that the registry has named, whatever
a token's head says of itself.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bus import subjects
from components.host.host import Host
from schemas.access import ShowSigningKeys, ShowSigningKeysReply
from schemas.nodes import Caller, UserRole

LEEWAY_S: Final = 30
ANSWER_S: Final = 2.0
#: A token that was right is not checked again for so long, nor beyond its end.
CACHE_S: Final = 60.0
CACHE_MAX: Final = 4096
#: Keys are asked for no more often, whatever tokens claim.
ASK_S: Final = 2.0
_CLAIMS: Final = ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"]


class BadToken(Exception):
    """The text is the older service's: ``Token required``, ``Token expired``, ``Invalid token``."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A token that was right, and until when that is not asked again."""

    name: str
    roles: tuple[UserRole, ...]
    until_s: float


class Accounts:
    """Checks tokens. Raises ``BadToken``, or ``BusError`` when no registry tells its keys."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._asked_s = float("-inf")
        self._checked: OrderedDict[bytes, Checked] = OrderedDict()

    async def caller(self, authorization: str | None, trace_id: str) -> Caller:
        """Who sent ``Authorization: Bearer TOKEN``."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else (authorization or "").strip()
        if not token:
            raise BadToken("Token required")
        digest, now_s = hashlib.sha256(token.encode()).digest(), self._host.clock.now_s()
        checked = self._checked.get(digest)
        if checked is None or checked.until_s <= now_s:
            checked = await self._check(token, now_s)
            if len(self._checked) >= CACHE_MAX:
                self._checked.popitem(last=False)
            self._checked[digest] = checked
        return Caller(name=checked.name, roles=checked.roles, trace_id=trace_id)

    async def _check(self, token: str, now_s: float) -> Checked:
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
        except jwt.InvalidTokenError:
            raise BadToken("Invalid token") from None
        key = self._keys.get(kid)
        if key is None and now_s - self._asked_s >= ASK_S:
            await self._ask()
            key = self._keys.get(kid)
        if key is None:
            raise BadToken("Invalid token")
        claims = _claims(token, key)
        left_s = float(claims["exp"]) - self._host.clock.wall_ms() / 1000
        return Checked(claims["sub"], _roles(claims), now_s + max(0.0, min(CACHE_S, left_s)))

    async def _ask(self) -> None:
        self._asked_s = self._host.clock.now_s()
        reply = await self._host.bus.ask(
            subjects.show_signing_keys(),
            ShowSigningKeys(),
            ShowSigningKeysReply,
            timeout_s=ANSWER_S,
        )
        self._keys = {k.kid: Ed25519PublicKey.from_public_bytes(k.public) for k in reply.keys}


def _claims(token: str, key: Ed25519PublicKey) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience="registry",
            issuer="switchyard",
            leeway=LEEWAY_S,
            options={"require": _CLAIMS},
        )
    except jwt.ExpiredSignatureError:
        raise BadToken("Token expired") from None
    except (jwt.InvalidTokenError, TypeError, ValueError):
        raise BadToken("Invalid token") from None
    return claims


def _roles(claims: dict[str, Any]) -> tuple[UserRole, ...]:
    """Those that we know; a token of ours names no others."""
    said = claims.get("roles")
    known: tuple[UserRole, ...] = ("admin", "user", "node")
    return tuple(role for role in known if isinstance(said, list) and role in said)
