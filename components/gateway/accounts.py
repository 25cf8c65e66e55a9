"""Whose token is this? Checked here, against public keys that the registry tells. No secrets.

The algorithm and the key are pinned: only Ed25519, only keys that the registry has named, whatever
a token's head says of itself.

Keys change. They are asked for again when a token comes and they are ``KEYS_AGAIN_S`` old, so a key
that the registry dropped is believed for a minute at most. While no registry answers, what it told
last is believed for ``KEPT_S``; after that no token is.
"""

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt.types import Options

from bus import subjects
from bus.errors import BusError
from components.domain.rates import Bucket
from components.host.host import Host
from schemas.access import (
    AUDIENCE,
    ISSUER,
    KEYS_AGAIN_S,
    LEEWAY_S,
    ShowSigningKeys,
    ShowSigningKeysReply,
)
from schemas.nodes import Caller, UserRole

ANSWER_S: Final = 2.0
#: So long keys are believed while no registry answers. Behind every path of this API it must answer
#: too: longer would be of use to those alone who keep us from hearing of a key that became known.
KEPT_S: Final = 300.0
#: Meanwhile it is asked again after so long.
TRY_AGAIN_S: Final = 2.0
#: A token that was right is not checked again for so long, nor beyond its end.
CACHE_S: Final = 60.0
CACHE_MAX: Final = 4096
#: Tokens of keys that we do not know: so many ask at once, and in the long run one in two seconds.
UNKNOWN_BURST: Final = 5
UNKNOWN_PER_S: Final = 0.5
#: Times are judged here, by the host's clock: the library reads the machine's.
_OPTIONS: Final[Options] = {
    "require": ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}


class BadToken(Exception):
    """The text is the older service's: ``Token required``, ``Token expired``, ``Invalid token``."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A token that was right, by which key, and until when that is not asked again."""

    kid: str
    name: str
    roles: tuple[UserRole, ...]
    until_s: float


class Accounts:
    """Checks tokens. Raises ``BadToken``, or ``BusError`` when no registry tells its keys."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._keys: dict[str, Ed25519PublicKey] = {}
        #: Since when the keys are known to be those, and when they are asked for again.
        self._told_s = float("-inf")
        self._due_s = float("-inf")
        self._asking: asyncio.Task[BusError | None] | None = None
        self._unknown = Bucket(UNKNOWN_BURST, host.clock.now_s())
        self._checked: OrderedDict[bytes, Checked] = OrderedDict()

    async def caller(self, authorization: str | None, trace_id: str) -> Caller:
        """Who sent ``Authorization: Bearer TOKEN``."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else (authorization or "").strip()
        if not token:
            raise BadToken("Token required")
        await self._keep_up()
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
        if key is None and self._unknown.take(UNKNOWN_PER_S, UNKNOWN_BURST, now_s):
            await self._ask()
            key = self._keys.get(kid)
        if key is None:
            raise BadToken("Invalid token")
        wall_s = self._host.clock.wall_ms() / 1000
        claims = _claims(token, key, wall_s)
        left_s = claims["exp"] - wall_s
        until_s = now_s + max(0.0, min(CACHE_S, left_s))
        return Checked(kid, claims["sub"], _roles(claims), until_s)

    # The keys.

    async def _keep_up(self) -> None:
        """Ask again when it is due. Raises ``BusError`` when what was told is too old as well."""
        now_s = self._host.clock.now_s()
        believed = now_s - self._told_s < KEPT_S
        if believed and now_s < self._due_s:
            return
        try:
            await self._ask()
        except BusError:
            if not believed:
                raise

    async def _ask(self) -> None:
        """One question is under way, however many wait for it. Raises ``BusError``."""
        if self._asking is None:
            self._asking = self._host.tasks.spawn("accounts.keys", self._question())
        error = await asyncio.shield(self._asking)
        if error is not None:
            raise error

    async def _question(self) -> BusError | None:
        """Why no keys are told; None when they are."""
        asked_s = self._host.clock.now_s()
        try:
            reply = await self._host.bus.ask(
                subjects.show_signing_keys(),
                ShowSigningKeys(),
                ShowSigningKeysReply,
                timeout_s=ANSWER_S,
            )
        except BusError as error:
            self._host.counters.add("signing_keys_not_told_total")
            self._due_s = self._host.clock.now_s() + TRY_AGAIN_S
            return error
        finally:
            self._asking = None
        self._told_s, self._due_s = asked_s, asked_s + KEYS_AGAIN_S
        self._believe({k.kid: Ed25519PublicKey.from_public_bytes(k.public) for k in reply.keys})
        return None

    def _believe(self, keys: dict[str, Ed25519PublicKey]) -> None:
        """These and no others, and no check that was made with another."""
        self._keys = keys
        lost = [digest for digest, checked in self._checked.items() if checked.kid not in keys]
        for digest in lost:
            del self._checked[digest]


def _claims(token: str, key: Ed25519PublicKey, wall_s: float) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=AUDIENCE,
            issuer=ISSUER,
            options=_OPTIONS,
        )
    except (jwt.InvalidTokenError, TypeError, ValueError):
        raise BadToken("Invalid token") from None
    starts_s, ends_s = (claims["nbf"], claims["iat"]), claims["exp"]
    if not all(isinstance(at_s, int) for at_s in (*starts_s, ends_s)):
        raise BadToken("Invalid token")
    if ends_s <= wall_s - LEEWAY_S:
        raise BadToken("Token expired")
    if max(starts_s) > wall_s + LEEWAY_S:
        raise BadToken("Invalid token")
    return claims


def _roles(claims: dict[str, Any]) -> tuple[UserRole, ...]:
    """Those that we know; a token of ours names no others."""
    said = claims.get("roles")
    known: tuple[UserRole, ...] = ("admin", "user", "node")
    return tuple(role for role in known if isinstance(said, list) and role in said)
