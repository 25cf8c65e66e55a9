"""Sessions: who has one, how it goes on, and how often one may guess. Pure.

A refresh token works once. When it comes a second time, somebody has stolen it or its answer was
lost; either way the session ends, and its owner logs in again. Sessions live in memory: a registry
that starts anew asks everybody to log in.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from components.domain.rates import Bucket
from schemas.nodes import UserRole

MINUTE_S: Final = 60.0


@dataclass(slots=True)
class Session:
    """One account's; ``token`` names the refresh token that counts now."""

    username: str
    token: str
    ends_s: float


@dataclass(slots=True)
class Sessions:
    """At most ``sessions_max``; the oldest makes room."""

    sessions_max: int
    life_s: float
    _of: OrderedDict[str, Session] = field(default_factory=OrderedDict)

    def begin(self, session_id: str, username: str, token: str, now_s: float) -> None:
        while self._of and (
            len(self._of) >= self.sessions_max or next(iter(self._of.values())).ends_s <= now_s
        ):
            self._of.popitem(last=False)
        self._of[session_id] = Session(username, token, now_s + self.life_s)

    def go_on(self, session_id: str, token: str, following: str, now_s: float) -> str | None:
        """The account whose session goes on under ``following``; None when it does not."""
        session = self._of.get(session_id)
        if session is None or session.ends_s <= now_s or session.token != token:
            self._of.pop(session_id, None)
            return None
        session.token = following
        return session.username

    def end_all_of(self, username: str) -> None:
        """The account changed or went."""
        ended = [name for name, session in self._of.items() if session.username == username]
        for name in ended:
            del self._of[name]

    def __len__(self) -> int:
        return len(self._of)


@dataclass(slots=True)
class Guesses:
    """So many a minute, per account and per address; remembers at most ``names_max`` of each."""

    per_user_min: int
    per_address_min: int
    names_max: int = 4096
    _users: OrderedDict[str, Bucket] = field(default_factory=OrderedDict)
    _addresses: OrderedDict[str, Bucket] = field(default_factory=OrderedDict)

    def may(self, username: str, address: str, now_s: float) -> bool:
        """Takes a guess from both."""
        by_user = self._take(self._users, username, self.per_user_min, now_s)
        return self._take(self._addresses, address, self.per_address_min, now_s) and by_user

    def _take(
        self, buckets: OrderedDict[str, Bucket], name: str, per_min: int, now_s: float
    ) -> bool:
        bucket = buckets.get(name)
        if bucket is None:
            if len(buckets) >= self.names_max:
                buckets.popitem(last=False)
            bucket = buckets[name] = Bucket(per_min, now_s)
        buckets.move_to_end(name)
        return bucket.take(per_min / MINUTE_S, per_min, now_s)


@dataclass(frozen=True, slots=True)
class User:
    """One account as its record holds it; ``password`` is an Argon2id hash in PHC form."""

    username: str
    password: str
    roles: tuple[UserRole, ...]
    revision: int = 0
