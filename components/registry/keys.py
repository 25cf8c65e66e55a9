"""API keys of tenants: which there are, and whom one lets in. Pure.

A change is decided on the record as it is known here and written by compare-and-set, as for nodes.
A key that was revoked, or whose time is over, stands for ``kept_days`` more, so that it can be seen
that it was there; a new key takes the place of the oldest such one when all places are taken.
"""

import hmac
from dataclasses import dataclass, field
from typing import Final

from components.registry.refused import Refused
from schemas.keys import ApiKey, KeyRefusal, ListKeys, MakeKey

DAY_MS: Final = 86_400_000


class KeyRefused(Refused[KeyRefusal]):
    """The change is not made."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as its record holds it; ``digest`` is the SHA-256 of its secret."""

    key: ApiKey
    digest: bytes


@dataclass(slots=True)
class KeyTable:
    """All keys, at most ``keys_max``."""

    keys_max: int = 4096
    kept_days: float = 30.0
    _keys: dict[str, KeyRecord] = field(default_factory=dict)
    _ended: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._keys)

    # What stands in the bucket.

    def stored(self, record: KeyRecord) -> None:
        """It was read, or just written. An older one than is known changes nothing."""
        known = self._keys.get(record.key.key_id)
        if known is None or record.key.revision > known.key.revision:
            self._keys[record.key.key_id] = record

    def ended(self, key_id: str, revision: int) -> None:
        """It was revoked with, or removed after ``revision``, by whoever: it lets nobody in.

        What is read later confirms it. A store with replicas may show the key as it was for a
        while, so this stands, also of keys not known here, for the newest ``keys_max``.
        """
        revision = max(revision, self._ended.pop(key_id, 0))
        if len(self._ended) >= self.keys_max:
            del self._ended[next(iter(self._ended))]
        self._ended[key_id] = revision

    def gone(self, key_id: str) -> None:
        """There is no such record any more."""
        self._keys.pop(key_id, None)

    def revision(self, key_id: str) -> int:
        """Of the record as it is known; 0: of none."""
        known = self._keys.get(key_id)
        return known.key.revision if known else 0

    def names(self) -> set[str]:
        """Ids of all keys."""
        return set(self._keys)

    # What can be asked.

    def check(self, key_id: str, digest: bytes, wall_ms: int) -> ApiKey | None:
        """The key that whoever has this ``digest`` holds; None when it lets nobody in."""
        known = self._keys.get(key_id)
        if known is None or _is_over(known.key, wall_ms):
            return None
        if known.key.revision <= self._ended.get(key_id, 0):
            return None
        return known.key if hmac.compare_digest(known.digest, digest) else None

    def page(self, asked: ListKeys) -> tuple[tuple[ApiKey, ...], bool]:
        """A page by the order of ids, and whether more follow."""
        keys = [
            self._keys[name].key
            for name in sorted(self._keys)
            if name > asked.after and asked.tenant in {"", self._keys[name].key.tenant}
        ]
        return tuple(keys[: asked.limit]), len(keys) > asked.limit

    # What shall change.

    def make(self, asked: MakeKey, wall_ms: int) -> KeyRecord:
        """The record to be written; raises ``KeyRefused``."""
        if asked.key_id in self._keys:
            raise KeyRefused("exists", f"there is a key {asked.key_id} already: make another one")
        if asked.expires_ms and asked.expires_ms <= wall_ms:
            raise KeyRefused("invalid", "it would have ended before it is made")
        if len(self._keys) >= self.keys_max:
            raise KeyRefused("full", f"there are {self.keys_max} keys: revoke some")
        key = ApiKey(
            key_id=asked.key_id,
            tenant=asked.tenant,
            name=asked.name,
            created_ms=wall_ms,
            expires_ms=asked.expires_ms,
        )
        return KeyRecord(key, asked.digest)

    def is_stored(self, record: KeyRecord) -> bool:
        """Is it so already?"""
        return self._keys.get(record.key.key_id) == record

    def revoke(self, key_id: str, wall_ms: int) -> KeyRecord:
        """The record as it shall be, or as it is: it was revoked. Raises ``KeyRefused``."""
        known = self._keys.get(key_id)
        if known is None:
            raise KeyRefused("not_found", f"there is no key {key_id!r}")
        if known.key.revoked_ms:
            return known
        return KeyRecord(known.key.model_copy(update={"revoked_ms": wall_ms}), known.digest)

    def to_remove(self, wall_ms: int, *, place_for: int = 0) -> list[ApiKey]:
        """Keys that stood long enough; and, oldest end first, whose place is needed."""
        over = sorted((_end_ms(r.key), r.key.key_id) for r in self._keys.values())
        over = [(end_ms, key_id) for end_ms, key_id in over if end_ms <= wall_ms]
        needed = len(self._keys) + place_for - self.keys_max
        kept_ms = self.kept_days * DAY_MS
        return [
            self._keys[key_id].key
            for place, (end_ms, key_id) in enumerate(over)
            if place < needed or end_ms + kept_ms <= wall_ms
        ]


def _end_ms(key: ApiKey) -> float:
    """When it was over, or will be."""
    ends = [end_ms for end_ms in (key.revoked_ms, key.expires_ms) if end_ms]
    return min(ends, default=float("inf"))


def _is_over(key: ApiKey, wall_ms: int) -> bool:
    return _end_ms(key) <= wall_ms
