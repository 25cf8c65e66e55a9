"""Signs access tokens, tells the keys by which they are known, and changes the key that signs.

The keys are a file of this registry's. Another registry has other keys: it would neither tell these
nor know of their rotation. So accounts are kept by one registry, the one with an ``access_dir``.
"""

import asyncio
import os
import secrets
from pathlib import Path

from bus.bus import Received
from components.host.host import Host
from components.registry.questions import Questions
from components.registry.secrets import SigningKeyFile
from components.registry.settings import RegistrySettings
from components.registry.signing import TooManyKeys
from schemas.access import (
    AUDIENCE,
    ISSUER,
    LEEWAY_S,
    RotateSigningKey,
    RotateSigningKeyReply,
    ShowSigningKeys,
    ShowSigningKeysReply,
)
from schemas.nodes import UserRole


class SigningService:
    """The part of the registry that holds private keys."""

    def __init__(self, host: Host, settings: RegistrySettings) -> None:
        """Raises ``CannotStart`` when the file of keys cannot be used."""
        self._host = host
        self._token_s = settings.access_token_s
        self._file = SigningKeyFile(Path(settings.access_dir))
        self._keys = self._file.read()
        self._rotating = False
        self._questions = Questions(host)

    async def start(self) -> None:
        await self._questions.answer(ShowSigningKeys, self._show)
        await self._questions.answer(RotateSigningKey, self._on_rotate)

    async def stop(self) -> None:
        await self._questions.stop()

    def token(self, username: str, roles: tuple[UserRole, ...]) -> str:
        """A JWT that says who this is, for ``access_token_s``."""
        now_s = self._host.clock.wall_ms() // 1000
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": username,
            "roles": list(roles),
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + self._token_s,
            "jti": secrets.token_hex(12),
        }
        return self._keys.signed(claims)

    def _show(self, asked: Received[ShowSigningKeys]) -> None:
        keys = self._keys.told(self._host.clock.wall_ms())
        self._host.bus.respond(asked, ShowSigningKeysReply(keys=keys))

    # Rotation.

    def _on_rotate(self, asked: Received[RotateSigningKey]) -> None:
        if self._rotating:
            detail = "the key is being changed already: try again"
            self._host.bus.respond(asked, RotateSigningKeyReply(done=False, detail=detail))
            return
        self._rotating = True
        _ = self._host.tasks.spawn("signing.rotate", self._rotate(asked))

    async def _rotate(self, asked: Received[RotateSigningKey]) -> None:
        # A token that is signed while the file is written has so much less of the leeway.
        grace_s = 0 if asked.message.at_once else self._token_s + LEEWAY_S
        try:
            await self._change(grace_s)
        except TooManyKeys as why:
            reply = RotateSigningKeyReply(done=False, detail=str(why))
        except OSError as error:
            detail = f"the keys could not be written: {error.strerror}"
            reply = RotateSigningKeyReply(done=False, detail=detail)
        else:
            reply = RotateSigningKeyReply(done=True, kid=self._keys.kid, grace_s=grace_s)
        finally:
            self._rotating = False
        self._host.bus.respond(asked, reply)

    async def _change(self, grace_s: int) -> None:
        """On disk first: what signs is there again after a crash."""
        now_ms = self._host.clock.wall_ms()
        following = self._keys.followed_by(os.urandom(32), now_ms, grace_s * 1000)
        await asyncio.to_thread(self._file.write, following)
        self._keys = following
        self._host.counters.add("signing_keys_rotated_total")
        self._host.log.warning("the key %s signs now; former ones for %d s", following.kid, grace_s)
