"""Which replica answers for a model or a shard: rendezvous hashing over those that live.

Every reader computes the same owner from the same heartbeats, without an election; when a replica
goes, only its own keys move (Thaler and Ravishankar, 1998).
"""

from collections.abc import Iterable

import xxhash


def owner_of(key: str, replicas: Iterable[str]) -> str | None:
    """The replica with the highest hash of (replica, key); None when there is none."""
    return max(
        replicas,
        key=lambda r: (xxhash.xxh3_64_intdigest(f"{r}\0{key}".encode()), r),
        default=None,
    )
