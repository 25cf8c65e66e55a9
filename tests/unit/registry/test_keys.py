"""Whom a key lets in, and how long it can still be seen that it was there."""

import pytest

from components.registry.keys import DAY_MS, KeyRecord, KeyRefused, KeyTable
from schemas.keys import ListKeys, MakeKey

NOW = 1_000_000
DIGEST, OTHER = b"d" * 32, b"e" * 32


def make(number: int = 1, **fields: object) -> MakeKey:
    values = {"key_id": f"{number:012x}", "digest": DIGEST, "tenant": "acme", **fields}
    return MakeKey.model_validate(values)


def made(table: KeyTable, number: int = 1, at_ms: int = NOW, **fields: object) -> KeyRecord:
    return stored(table, table.make(make(number, **fields), at_ms))


def stored(table: KeyTable, record: KeyRecord) -> KeyRecord:
    revision = record.key.revision + 1
    record = KeyRecord(record.key.model_copy(update={"revision": revision}), record.digest)
    table.stored(record)
    return record


def test_a_key_lets_in_who_holds_its_secret_and_nobody_else():
    table = KeyTable()
    key = made(table).key
    assert table.check(key.key_id, DIGEST, NOW) == key
    assert table.check(key.key_id, OTHER, NOW) is None
    assert table.check("f" * 12, DIGEST, NOW) is None


def test_a_key_that_was_revoked_lets_nobody_in_and_revoking_it_again_changes_nothing():
    table = KeyTable()
    key_id = made(table).key.key_id
    revoked = stored(table, table.revoke(key_id, NOW + 5))
    assert revoked.key.revoked_ms == NOW + 5
    assert table.check(key_id, DIGEST, NOW + 5) is None
    assert table.revoke(key_id, NOW + 9) == revoked
    assert table.is_stored(revoked)
    assert not table.is_stored(KeyRecord(revoked.key, OTHER))


def test_a_key_ends_when_it_said_it_would():
    table = KeyTable()
    key_id = made(table, expires_ms=NOW + 10).key.key_id
    assert table.check(key_id, DIGEST, NOW + 9) is not None
    assert table.check(key_id, DIGEST, NOW + 10) is None


def test_what_cannot_be_made_or_revoked_is_refused_with_a_reason():
    table = KeyTable(keys_max=1)
    made(table)
    for work, reason in (
        (lambda: table.make(make(), NOW), "exists"),
        (lambda: table.make(make(2), NOW), "full"),
        (lambda: table.make(make(2, expires_ms=NOW), NOW), "invalid"),
        (lambda: table.revoke("f" * 12, NOW), "not_found"),
    ):
        with pytest.raises(KeyRefused) as refused:
            work()
        assert refused.value.reason == reason


def test_an_older_record_changes_nothing_and_one_that_is_gone_is_none():
    table = KeyTable()
    key_id = made(table).key.key_id
    newer = stored(table, table.revoke(key_id, NOW))
    table.stored(KeyRecord(newer.key.model_copy(update={"revoked_ms": 0, "revision": 1}), DIGEST))
    assert (table.revision(key_id), table.check(key_id, DIGEST, NOW)) == (2, None)
    table.gone(key_id)
    assert (table.revision(key_id), table.names(), len(table)) == (0, set(), 0)


def test_keys_are_listed_in_pages_by_id_and_by_tenant():
    table = KeyTable()
    for number in range(5):
        made(table, number, tenant="acme" if number % 2 else "globex")
    keys, more = table.page(ListKeys(limit=2))
    assert ([int(k.key_id, 16) for k in keys], more) == ([0, 1], True)
    keys, more = table.page(ListKeys(limit=3, after=keys[-1].key_id))
    assert ([int(k.key_id, 16) for k in keys], more) == ([2, 3, 4], False)
    keys, more = table.page(ListKeys(tenant="acme"))
    assert ([int(k.key_id, 16) for k in keys], more) == ([1, 3], False)


def test_what_is_over_is_removed_after_its_days_or_when_its_place_is_needed():
    table = KeyTable(keys_max=3, kept_days=1)
    made(table, 1)
    made(table, 2, expires_ms=NOW + 20)
    stored(table, table.revoke(made(table, 3).key.key_id, NOW + 10))

    def to_remove(wall_ms: int, **options: int) -> list[int]:
        return [int(key.key_id, 16) for key in table.to_remove(wall_ms, **options)]

    assert to_remove(NOW + 20) == []
    assert to_remove(NOW + 20, place_for=1) == [3]
    assert to_remove(NOW + 20, place_for=2) == [3, 2]
    assert to_remove(NOW + 19, place_for=3) == [3]
    assert to_remove(NOW + 10 + DAY_MS) == [3]
    assert to_remove(NOW + 20 + DAY_MS) == [3, 2]


def test_a_key_that_was_revoked_or_removed_elsewhere_lets_nobody_in_before_it_is_read():
    table = KeyTable()
    record = made(table)
    key_id = record.key.key_id
    table.ended(key_id, record.key.revision + 1)
    assert table.check(key_id, DIGEST, NOW) is None
    table.ended(key_id, record.key.revision)
    assert table.check(key_id, DIGEST, NOW) is None, "an older word changes nothing"
    table.gone(key_id)
    table.stored(record)
    assert table.check(key_id, DIGEST, NOW) is None, "a store that is behind shows it as it was"
    later = record.key.model_copy(update={"revision": record.key.revision + 2})
    table.stored(KeyRecord(later, DIGEST))
    assert table.check(key_id, DIGEST, NOW) == later, "another one of this name"


def test_so_many_ends_are_remembered_and_the_newest_of_them():
    table = KeyTable(keys_max=2)
    for number in (1, 2, 3):
        table.ended(make(number).key_id, 5)
    assert len(table._ended) == 2
    made(table, 1)
    made(table, 3)
    assert table.check(make(1).key_id, DIGEST, NOW) is not None
    assert table.check(make(3).key_id, DIGEST, NOW) is None
