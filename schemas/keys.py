"""API keys of tenants: who may ask over HTTP, and in whose name.

A key is ``sy-<id>-<secret>``. The secret never crosses the bus: whoever makes a key, and whoever is
shown one, sends the SHA-256 of it. That is enough, because a secret is 256 random bits, which
nobody guesses however fast a hash is; slow hashes are for passwords.
"""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.message import Message, Part

#: Why a key was not made, changed or shown. For programs; ``detail`` beside it is for people.
KeyRefusal = Literal["exists", "full", "not_found", "invalid", "conflict", "store_away"]
KeyEvent = Literal["made", "revoked", "removed"]

_ID = Field(pattern=r"^[0-9a-f]{12}$")
_DIGEST = Field(min_length=32, max_length=32)
_TENANT = Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")


class ApiKey(Part):
    """One key without what proves it. Times in ms since 1970; 0: never."""

    key_id: str = _ID
    tenant: str = _TENANT
    name: str = Field(default="", max_length=128)
    created_ms: int = Field(default=0, ge=0)
    expires_ms: int = Field(default=0, ge=0)
    revoked_ms: int = Field(default=0, ge=0)
    revision: int = 0


class MakeKey(Message):
    """Take a key whose secret has this SHA-256 for one of ``tenant``. The operator's."""

    schema_id: ClassVar[str] = "key.make.v1"

    key_id: str = _ID
    digest: bytes = _DIGEST
    tenant: str = _TENANT
    name: str = Field(default="", max_length=128)
    expires_ms: int = Field(default=0, ge=0)


class KeyAnswer(Part):
    """The key as it is stored; or why there is none."""

    key: ApiKey | None = None
    refusal: KeyRefusal | None = None
    detail: str = ""


class MakeKeyReply(KeyAnswer, Message):
    """The key as it is stored."""

    schema_id: ClassVar[str] = "key.make_reply.v1"


class RevokeKey(Message):
    """Let nobody in with this key any more. Harmless twice."""

    schema_id: ClassVar[str] = "key.revoke.v1"

    key_id: str = _ID


class RevokeKeyReply(KeyAnswer, Message):
    """The key as it is stored."""

    schema_id: ClassVar[str] = "key.revoke_reply.v1"


class ListKeys(Message):
    """Keys by the order of their ids, after one; of one tenant if it is named."""

    schema_id: ClassVar[str] = "key.list.v1"

    after: str = ""
    limit: int = Field(default=500, ge=1, le=1000)
    tenant: str = ""


class ListKeysReply(Message):
    """``more`` follow the last one."""

    schema_id: ClassVar[str] = "key.list_reply.v1"

    keys: tuple[ApiKey, ...] = ()
    more: bool = False
    refusal: KeyRefusal | None = None
    detail: str = ""


class CheckKey(Message):
    """A gateway was shown a key whose secret has this SHA-256: whose is it?"""

    schema_id: ClassVar[str] = "key.check.v1"

    key_id: str = _ID
    digest: bytes = _DIGEST


class CheckKeyReply(Message):
    """Its tenant, and until when (0: for ever); ``not_found`` for every key that lets nobody in."""

    schema_id: ClassVar[str] = "key.check_reply.v1"

    tenant: str = ""
    expires_ms: int = 0
    refusal: KeyRefusal | None = None


class KeyChanged(Message):
    """Whoever remembers this key forgets it. Kept in FLEET."""

    schema_id: ClassVar[str] = "key.changed.v1"

    key_id: str = _ID
    what: KeyEvent
    tenant: str = ""
    revision: int = 0
    at_ms: int = 0
