"""A bucket and the table that knows it: read whole or record by record, changed in two tries.

Another registry may write the same bucket. So what is decided here is written by compare-and-set,
and decided again, once, on what the bucket says then.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from typing import Literal, Protocol, TypeVar

from bus.errors import RecordChanged, RecordRefused, StreamUnavailable
from bus.records import Record, Records
from components.host.host import Host
from components.registry.refused import Refused

T = TypeVar("T")
#: Reasons that the store gives, whatever its records are.
Why = Literal["store_away", "conflict", "full"]


class Table(Protocol):
    """What is known of the records of one bucket."""

    def names(self) -> set[str]: ...

    def revision(self, name: str, /) -> int: ...

    def gone(self, name: str, /) -> None: ...


class Mirror(ABC):
    """Raises ``StreamUnavailable`` where not said otherwise."""

    def __init__(self, host: Host, records: Records, bucket: str, table: Table) -> None:
        self._host = host
        self._records = records
        self._bucket = bucket
        self._known = table
        #: Was every record read once? Before that nobody can say what there is not.
        self.loaded = False

    @abstractmethod
    def _take(self, record: Record) -> bool:
        """Put what was read into the table; False: it shall hold nothing under this name."""

    async def read_all(self) -> None:
        """Every record."""
        found = await self._records.all(self._bucket)
        for record in found:
            self._take(record)
        for name in self._known.names() - {record.name for record in found}:
            await self.read(name)
        self.loaded = True

    async def read(self, name: str, revision: int | None = 0) -> bool:
        """One record; whether it is as new as ``revision``, None: as its removal."""
        record = await self._records.get(self._bucket, name)
        known = self._known.revision(name)
        if record is None or not self._take(record):
            self._known.gone(name)
        if record is None:
            return not revision
        return record.revision > known if revision is None else record.revision >= revision

    async def find(self, name: str) -> None:
        """One that is not known here; if there is none yet, nothing changes."""
        if record := await self._records.get(self._bucket, name):
            _ = self._take(record)

    async def change(
        self,
        name: str,
        attempt: Callable[[], Awaitable[T]],
        refused: Callable[[Why, str], Exception],
        may_be_stale: Collection[str],
    ) -> T:
        """What ``attempt`` gives, which decides and writes; once more on what the bucket says then.

        It is made again after a change by somebody else, and after a refusal for one of the reasons
        that ``may_be_stale``. Raises ``refused``.
        """
        if not self.loaded:
            raise refused("store_away", "the records could not be read yet: try again")
        try:
            for last in (False, True):
                try:
                    return await attempt()
                except Refused as why:
                    if last or why.reason not in may_be_stale:
                        raise
                except RecordChanged:
                    if last:
                        detail = "it changes all the time: try again"
                        raise refused("conflict", detail) from None
                await self.read(name)
        except RecordRefused as error:
            raise refused("full", str(error)) from error
        except StreamUnavailable as error:
            raise refused("store_away", f"{error}: try again") from error
        raise AssertionError("two attempts end in one of the ways above")
