"""Answers for accounts: logins, sessions, who may log in.

Only where a folder for keys is set (``access_dir``): with several registries that is one of them,
and it alone is asked. Hashing a password takes 35 ms and 19 MiB: in a thread, two at a time.
"""

import asyncio
import json
import secrets
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, get_args

from bus.bus import Received
from bus.errors import RecordChanged, RecordRefused, StreamUnavailable
from bus.records import Record, Records
from components.host.host import Host
from components.registry.loading import until_read
from components.registry.questions import Questions
from components.registry.secrets import (
    NOBODY,
    bootstrap_password,
    hash_password,
    is_password,
)
from components.registry.sessions import Guesses, Sessions, User
from components.registry.settings import RegistrySettings
from components.registry.signing_service import SigningService
from schemas.access import (
    Login,
    LoginRefusal,
    LoginReply,
    PutUser,
    PutUserReply,
    RefreshSession,
    RefreshSessionReply,
)
from schemas.nodes import UserRole

Reply = TypeVar("Reply", LoginReply, RefreshSessionReply)

USERS: Final = "users"
HASHES_MAX: Final = 2
#: Logins that wait for one of those; the next one is told to come back.
WAITING_MAX: Final = 32
RETRY_S: Final = 15


class AccessService:
    """The part of the registry that knows accounts."""

    def __init__(self, host: Host, settings: RegistrySettings, records: Records) -> None:
        self._host = host
        self._settings = settings
        self._records = records
        self._users: dict[str, User] = {}
        self._sessions = Sessions(settings.sessions_max, settings.refresh_token_s)
        self._guesses = Guesses(settings.login_per_user_min, settings.login_per_address_min)
        self._hashing = asyncio.Semaphore(HASHES_MAX)
        self._waiting = 0
        self._signing: SigningService | None = None
        self._loaded = False
        self._questions = Questions(host)

    async def start(self) -> None:
        """Raises ``CannotStart`` when the file of keys cannot be used."""
        settings = self._settings
        if not settings.access_dir:
            return
        self._signing = SigningService(self._host, settings)
        await self._signing.start()
        if settings.insecure_username_login:
            self._host.counters["insecure_username_login"] = 1
            self._host.log.warning("anybody may log in as admin or user: insecure_username_login")
        await self._questions.answer(Login, self._on_login)
        await self._questions.answer(RefreshSession, self._refresh)
        await self._questions.answer(PutUser, self._on_put)
        load = until_read(self._host, "accounts", self._load)
        _ = self._host.tasks.spawn("access.load", load)

    async def stop(self) -> None:
        if self._signing is not None:
            await self._signing.stop()
        await self._questions.stop()

    async def _load(self) -> None:
        for record in await self._records.all(USERS):
            self._take(record)
        if not self._users:
            await self._first_admin()
        self._loaded = True

    def _take(self, record: Record) -> None:
        try:
            values = json.loads(record.value)
            known = get_args(UserRole)
            roles: tuple[UserRole, ...] = tuple(r for r in values["roles"] if r in known)
            user = User(record.name, str(values["password"]), roles, record.revision)
        except (ValueError, KeyError, TypeError):
            self._host.counters.add("records_unreadable_total")
            return
        self._users[user.username] = user

    async def _first_admin(self) -> None:
        """Nobody has an account: one for whoever can read our files."""
        folder = Path(self._settings.access_dir)
        password = await asyncio.to_thread(bootstrap_password, folder)
        await self._write(User("admin", await self._hash(password), ("admin",)))
        self._host.log.warning("the first password of admin is in %s", folder)

    async def _hash(self, password: str) -> str:
        async with self._hashing:
            return await asyncio.to_thread(hash_password, password)

    async def _write(self, user: User) -> None:
        value = json.dumps({"password": user.password, "roles": user.roles}).encode()
        revision = await self._records.put(USERS, user.username, value, revision=user.revision)
        self._users[user.username] = User(user.username, user.password, user.roles, revision)

    # Sessions.

    def _on_login(self, asked: Received[Login]) -> None:
        message, now_s = asked.message, self._host.clock.now_s()
        if not self._guesses.may(message.username, message.address, now_s):
            self._refuse(asked, "too_many")
        elif self._waiting >= WAITING_MAX:
            self._refuse(asked, "busy")
        elif not self._loaded:
            self._refuse(asked, "store_away")
        else:
            self._waiting += 1
            _ = self._host.tasks.spawn("access.login", self._login(asked))

    def _refuse(self, asked: Received[Login], why: LoginRefusal) -> None:
        self._host.counters.add(f"logins_refused_{why}_total")
        retry_s = 0 if why == "unauthorized" else RETRY_S
        self._host.bus.respond(asked, LoginReply(refusal=why, retry_after_s=retry_s))

    async def _login(self, asked: Received[Login]) -> None:
        message = asked.message
        try:
            roles = await self._roles_of(message)
        finally:
            self._waiting -= 1
        if roles is None:
            self._refuse(asked, "unauthorized")
            return
        self._host.counters.add("logins_total")
        session_id, token = secrets.token_urlsafe(18), secrets.token_urlsafe(24)
        self._sessions.begin(session_id, message.username, token, self._host.clock.now_s())
        granted = self._granted(LoginReply, message.username, roles, f"{session_id}.{token}")
        self._host.bus.respond(asked, granted)

    async def _roles_of(self, asked: Login) -> tuple[UserRole, ...] | None:
        """The roles of who proved to be this account."""
        if self._settings.insecure_username_login and not asked.password:
            insecure: dict[str, tuple[UserRole, ...]] = {"admin": ("admin",), "user": ("user",)}
            return insecure.get(asked.username)
        user = self._users.get(asked.username)
        async with self._hashing:
            check = partial(is_password, asked.password, user.password if user else NOBODY)
            right = await asyncio.to_thread(check)
        return user.roles if user and right else None

    def _refresh(self, asked: Received[RefreshSession]) -> None:
        session_id, _, token = asked.message.refresh_token.partition(".")
        following = secrets.token_urlsafe(24)
        now_s = self._host.clock.now_s()
        username = self._sessions.go_on(session_id, token, following, now_s)
        user = self._users.get(username) if username else None
        if user is None:
            self._host.bus.respond(asked, RefreshSessionReply(refusal="unauthorized"))
            return
        refresh_token = f"{session_id}.{following}"
        granted = self._granted(RefreshSessionReply, user.username, user.roles, refresh_token)
        self._host.bus.respond(asked, granted)

    def _granted(
        self, kind: type[Reply], username: str, roles: tuple[UserRole, ...], refresh_token: str
    ) -> Reply:
        assert self._signing is not None, "who listens signs"
        return kind(
            access_token=self._signing.token(username, roles),
            refresh_token=refresh_token,
            expires_s=self._settings.access_token_s,
        )

    # Accounts.

    def _on_put(self, asked: Received[PutUser]) -> None:
        _ = self._host.tasks.spawn("access.put_user", self._put(asked))

    async def _put(self, asked: Received[PutUser]) -> None:
        try:
            detail = await self._change(asked.message)
        except RecordRefused as error:
            detail = str(error)
        except (RecordChanged, StreamUnavailable) as error:
            detail = f"{error}: try again"
        self._host.bus.respond(asked, PutUserReply(done=not detail, detail=detail))

    async def _change(self, asked: PutUser) -> str:
        """Why it was not done; empty when it was."""
        known = self._users.get(asked.username)
        if asked.remove:
            if known is None:
                return f"there is no account {asked.username!r}"
            await self._records.delete(USERS, asked.username, revision=known.revision)
            del self._users[asked.username]
        else:
            if known is None and (not asked.password or not asked.roles):
                return "a new account needs a password and a role"
            if known is None and len(self._users) >= self._settings.users_max:
                return f"there are {self._settings.users_max} accounts"
            hashed = await self._hash(asked.password) if asked.password else ""
            password = hashed or (known.password if known else "")
            roles = asked.roles or (known.roles if known else ())
            revision = known.revision if known else 0
            await self._write(User(asked.username, password, roles, revision))
        self._sessions.end_all_of(asked.username)
        return ""
