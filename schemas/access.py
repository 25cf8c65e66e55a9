"""Who may do what over HTTP: accounts, sessions, and the keys that sign their tokens.

Passwords and refresh tokens cross the bus in the control account only, from a gateway to the
registry, and are kept nowhere but as hashes.
"""

from typing import ClassVar, Final, Literal

from pydantic import Field

from schemas.message import Message, Part
from schemas.nodes import UserRole

#: Whose access tokens are, and what for, in their own claims.
ISSUER: Final = "switchyard"
AUDIENCE: Final = "registry"
#: So far may the clocks of who signs and who checks be apart.
LEEWAY_S: Final = 30
#: Whoever checks tokens asks for the keys again at least so often while tokens come, and believes
#: no key any more that is not told.
KEYS_AGAIN_S: Final = 60

#: Why there is no session. For programs; nothing tells an unknown account from a wrong password.
LoginRefusal = Literal["unauthorized", "too_many", "busy", "store_away"]


class SessionAnswer(Part):
    """The tokens of a session; without them, ``refusal`` says why not."""

    access_token: str = ""
    refresh_token: str = ""
    expires_s: int = 0
    refusal: LoginRefusal | None = None
    retry_after_s: int = 0


class Login(Message):
    """An account asks for a session. ``address``: where from, for the limit on guesses."""

    schema_id: ClassVar[str] = "session.login.v1"

    username: str = Field(max_length=128)
    password: str = Field(default="", max_length=1024)
    address: str = ""


class LoginReply(SessionAnswer, Message):
    """``access_token`` is a JWT for ``expires_s``; ``refresh_token`` works once."""

    schema_id: ClassVar[str] = "session.login_reply.v1"


class RefreshSession(Message):
    """A new pair of tokens for an old one. A refresh token that comes twice ends its session."""

    schema_id: ClassVar[str] = "session.refresh.v1"

    refresh_token: str = Field(max_length=4096)


class RefreshSessionReply(SessionAnswer, Message):
    """As ``LoginReply``."""

    schema_id: ClassVar[str] = "session.refresh_reply.v1"


class SigningKey(Part):
    """A public Ed25519 key, 32 bytes, by its id."""

    kid: str
    public: bytes


class ShowSigningKeys(Message):
    """Which keys sign access tokens?"""

    schema_id: ClassVar[str] = "session.show_keys.v1"


class ShowSigningKeysReply(Message):
    """The one that signs first; then those whose tokens may still live."""

    schema_id: ClassVar[str] = "session.show_keys_reply.v1"

    keys: tuple[SigningKey, ...] = ()


class RotateSigningKey(Message):
    """Sign with a new key from now on. The operator's.

    What was signed before counts until it ends; with ``at_once`` no longer: a key became known.
    """

    schema_id: ClassVar[str] = "session.rotate_key.v1"

    at_once: bool = False


class RotateSigningKeyReply(Message):
    """The id of the new key, and for how long tokens of former ones count; else why not."""

    schema_id: ClassVar[str] = "session.rotate_key_reply.v1"

    done: bool
    detail: str = ""
    kid: str = ""
    grace_s: int = 0


class PutUser(Message):
    """Make an account, or change its password or roles. Empty: as it is. The operator's."""

    schema_id: ClassVar[str] = "user.put.v1"

    username: str = Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")
    password: str = Field(default="", max_length=1024)
    roles: tuple[UserRole, ...] = ()
    remove: bool = False


class PutUserReply(Message):
    """Whether it was done, else why not."""

    schema_id: ClassVar[str] = "user.put_reply.v1"

    done: bool
    detail: str = ""
