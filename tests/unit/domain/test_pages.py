"""Block identity: equal hashes exactly for equal prefixes of one tenant."""

import hashlib
import hmac

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from components.domain.pages import (
    PAGE_TOKENS,
    pack_hashes,
    page_hashes,
    pages_for,
    tenant_salt,
    unpack_hashes,
)

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=80)
salts = st.integers(0, 2**64 - 1)


def test_the_chain_is_what_its_definition_says():
    ids = list(range(100, 140))
    first = b"".join(token.to_bytes(4, "little") for token in ids[:16])
    second = b"".join(token.to_bytes(4, "little") for token in ids[16:32])
    one = xxhash.xxh3_64_intdigest(first, seed=7)
    two = xxhash.xxh3_64_intdigest(second, seed=one)
    assert page_hashes(ids, salt=7) == (one, two)


def test_the_chain_stays_what_it_was_in_the_last_release():
    # Hashes are recorded and compared across versions: another value here is a new block identity.
    assert page_hashes(range(32), salt=0) == (0x79C2079C74A8EE4D, 0x909F26211E4EF238)


@given(tokens, salts)
def test_only_full_pages_have_a_hash(ids: list[int], salt: int):
    assert len(page_hashes(ids, salt)) == len(ids) // PAGE_TOKENS


@given(tokens, tokens, salts)
def test_a_prefix_of_the_tokens_has_a_prefix_of_the_hashes(
    ids: list[int], more: list[int], salt: int
):
    shorter = page_hashes(ids, salt)
    assert page_hashes([*ids, *more], salt)[: len(shorter)] == shorter


@given(st.lists(st.integers(0, 2**32 - 1), min_size=48, max_size=48), salts, st.integers(0, 47))
def test_a_changed_token_changes_its_page_and_all_after_it(ids: list[int], salt: int, place: int):
    changed = [*ids]
    changed[place] ^= 1
    same = [a == b for a, b in zip(page_hashes(ids, salt), page_hashes(changed, salt), strict=True)]
    assert same == [page < place // PAGE_TOKENS for page in range(3)]


def test_tenants_share_no_page():
    ids = list(range(64))
    a, b = (page_hashes(ids, tenant_salt(b"secret", tenant)) for tenant in ("a", "b"))
    assert not set(a) & set(b)


def test_the_salt_is_the_head_of_the_hmac():
    digest = hmac.new(b"secret", "müller".encode(), hashlib.sha256).digest()
    assert tenant_salt(b"secret", "müller").to_bytes(8, "little") == digest[:8]
    assert tenant_salt(b"other", "müller") != tenant_salt(b"secret", "müller")


@given(st.lists(salts, max_size=20))
def test_hashes_survive_packing(hashes: list[int]):
    data = pack_hashes(hashes)
    assert len(data) == 8 * len(hashes)
    assert unpack_hashes(data) == tuple(hashes)


def test_hashes_travel_little_endian():
    assert pack_hashes([1, 2**63]) == bytes([1, *[0] * 14, 0x80])


def test_cut_off_hashes_are_refused():
    with pytest.raises(ValueError, match="15 bytes"):
        unpack_hashes(bytes(15))


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_a_token_id_outside_uint32_is_refused(bad: int):
    with pytest.raises(ValueError, match="token ids"):
        page_hashes([bad] * 16, 0)


@pytest.mark.parametrize(("count", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_a_started_page_is_a_page(count: int, pages: int):
    assert pages_for(count) == pages
