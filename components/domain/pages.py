"""Block identity: what makes two pages of KV cache the same page.

A page is 16 tokens. Its hash covers its own tokens and, through the seed, everything before it and
the tenant it belongs to:

    hash[0] = xxh3_64(page 0, seed=salt)      hash[i] = xxh3_64(page i, seed=hash[i-1])

with a page's bytes being its token ids as little-endian uint32. So equal hashes mean equal prefixes
of one tenant, and tenants cannot find each other's pages by guessing prompts.
"""

import hmac
import struct
from collections.abc import Sequence

import xxhash

PAGE_TOKENS = 16
"""Tokens in one page. Engines with larger blocks must use a multiple of it."""

HASH_BYTES = 8

_PAGE_BYTES = 4 * PAGE_TOKENS


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` tokens, the last one perhaps partly filled."""
    return -(-tokens // PAGE_TOKENS)


def page_hashes(token_ids: Sequence[int], salt: int) -> tuple[int, ...]:
    """Hash chain of the full pages of `token_ids`; a partly filled last page has no hash.

    `salt` is the tenant's (see `tenant_salt`), 0 <= salt < 2**64; so is every hash.
    Raises ValueError for a token id outside uint32.
    """
    count = len(token_ids) // PAGE_TOKENS
    try:
        data = struct.pack(f"<{count * PAGE_TOKENS}I", *token_ids[: count * PAGE_TOKENS])
    except struct.error as error:
        raise ValueError(f"token ids must be integers from 0 to 2**32 - 1: {error}") from error
    view = memoryview(data)
    seed = salt
    hashes = []
    for start in range(0, len(data), _PAGE_BYTES):
        seed = xxhash.xxh3_64_intdigest(view[start : start + _PAGE_BYTES], seed=seed)
        hashes.append(seed)
    return tuple(hashes)


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """Hashes as they travel in a message: 8 bytes each, little-endian."""
    return struct.pack(f"<{len(hashes)}Q", *hashes)


def unpack_hashes(data: bytes) -> tuple[int, ...]:
    """Inverse of `pack_hashes`. Raises ValueError when `data` is not a whole number of hashes."""
    if len(data) % HASH_BYTES:
        raise ValueError(f"{len(data)} bytes are not a whole number of {HASH_BYTES}-byte hashes")
    return struct.unpack(f"<{len(data) // HASH_BYTES}Q", data)


def tenant_salt(secret: bytes, tenant: str) -> int:
    """The seed of a tenant's hash chains: first 8 bytes of HMAC-SHA256(secret, tenant)."""
    digest = hmac.digest(secret, tenant.encode(), "sha256")
    return int.from_bytes(digest[:HASH_BYTES], "little")
