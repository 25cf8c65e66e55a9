"""Says on the bus what enters and leaves the prefix cache."""

from bus import subjects
from components.domain.pages import pack_hashes
from components.host.host import Host
from components.worker.vllm.page_names import PagesChange
from schemas.engine import KvPagesChanged


class PageReports:
    """Numbers the changes of one engine's life, so that a reader notices what it missed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._next_change = 0

    def say(self, change: PagesChange) -> None:
        """One message per change."""
        message = KvPagesChanged(
            engine=self._host.instance,
            engine_epoch=self._host.epoch,
            first_change=self._next_change,
            parent=change.parent,
            stored=pack_hashes(change.stored),
            removed=pack_hashes(change.removed),
            cleared=change.cleared,
        )
        self._next_change += change.count
        self._host.bus.publish(subjects.kv_pages_changed(self._host.instance), message)
