"""The table of engines, made durable: JSON in a bucket, written by compare-and-set."""

from typing import Final

from pydantic import ValidationError

from bus.errors import RecordChanged
from bus.records import Record, Records
from components.host.host import Host
from components.registry.engine_about import fitting
from components.registry.engines import EngineTable
from components.registry.mirror import Mirror
from schemas.engines import EngineRecord

ENGINES: Final = "engines"


class EngineRecords(Mirror):
    """What the table wants, written; what stands in the bucket, read."""

    def __init__(self, host: Host, records: Records, table: EngineTable) -> None:
        super().__init__(host, records, ENGINES, table)
        self._table = table

    async def write(self, name: str) -> EngineRecord | None:
        """Write what is wanted of this engine; None when nothing is, or somebody knew better.

        Raises ``StreamUnavailable``.
        """
        before = self._table.revision(name)
        for contested in (False, True):
            wanted = self._table.wanted(name, self._host.clock.wall_ms(), contested=contested)
            if wanted is None:
                return None
            try:
                return await self._put(wanted)
            except RecordChanged:
                self._host.counters.add("engine_records_contested_total")
                await self.read(name)
        if self._table.revision(name) != before:
            self._table.again(name)  # else it cannot be read, and is left as it is
        return None

    async def remove(self, name: str, revision: int) -> None:
        """Raises ``RecordChanged`` and ``StreamUnavailable``."""
        try:
            await self._records.delete(ENGINES, name, revision=revision)
        except RecordChanged:
            await self.read(name)
            raise
        self._table.gone(name)

    async def _put(self, wanted: EngineRecord) -> EngineRecord:
        # It fits (``engine_about``), and is read as it is here: else two registries never agree.
        value = wanted.model_dump_json(exclude={"revision"}).encode()
        name, revision = wanted.engine, wanted.revision
        revision = await self._records.put(ENGINES, name, value, revision=revision)
        written = wanted.model_copy(update={"revision": revision})
        self._keep(written)
        return written

    def _take(self, record: Record) -> bool:
        try:
            engine = EngineRecord.model_validate_json(record.value)
        except ValidationError:
            self._host.counters.add("records_unreadable_total")
            return True  # a later version's: what is heard of the engine stays
        about = fitting(engine.about)  # another version may have written more
        known = {"engine": record.name, "revision": record.revision, "about": about}
        self._keep(engine.model_copy(update=known))
        return True

    def _keep(self, record: EngineRecord) -> None:
        if not self._table.stored(record, self._host.clock.now_s()):
            self._host.counters.add("engine_records_ignored_total")
