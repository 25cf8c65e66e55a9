"""The table of API keys, made durable: JSON in a bucket, written by compare-and-set."""

import json
from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from bus.records import Record, Records
from components.host.host import Host
from components.registry.keys import KeyRecord, KeyRefused, KeyTable
from components.registry.mirror import Mirror
from schemas.keys import ApiKey

KEYS: Final = "keys"


class KeyRecords(Mirror):
    """What the table decides, written; what stands in the bucket, read."""

    def __init__(self, host: Host, records: Records, table: KeyTable) -> None:
        super().__init__(host, records, KEYS, table)
        self._table = table

    async def write(self, key_id: str, decide: Callable[[], KeyRecord]) -> ApiKey:
        """Do what is decided, unless it is so already; raises ``KeyRefused``."""

        async def attempt() -> ApiKey:
            wanted = decide()
            return wanted.key if self._table.is_stored(wanted) else await self._put(wanted)

        return await self.change(key_id, attempt, KeyRefused, {"not_found"})

    async def remove(self, key: ApiKey) -> None:
        """Raises ``RecordChanged`` and ``StreamUnavailable``."""
        await self._records.delete(KEYS, key.key_id, revision=key.revision)
        self._table.gone(key.key_id)

    async def _put(self, wanted: KeyRecord) -> ApiKey:
        key = wanted.key
        values = {**key.model_dump(exclude={"revision"}), "digest": wanted.digest.hex()}
        value = json.dumps(values).encode()
        revision = await self._records.put(KEYS, key.key_id, value, revision=key.revision)
        key = key.model_copy(update={"revision": revision})
        self._table.stored(KeyRecord(key, wanted.digest))
        return key

    def _take(self, record: Record) -> bool:
        try:
            values = json.loads(record.value)
            digest = bytes.fromhex(values.pop("digest"))
            key = ApiKey.model_validate({**values, "revision": record.revision})
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
            self._host.counters.add("records_unreadable_total")
            return False
        self._table.stored(KeyRecord(key, digest))
        return True
