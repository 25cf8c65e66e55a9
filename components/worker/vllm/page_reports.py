"""Says on the bus what enters and leaves the prefix cache, and what it holds to whoever asks."""

from bus import subjects
from bus.bus import Received
from components.domain.page_book import PageBook
from components.host.host import Host
from components.worker.vllm.page_names import PagesChange
from schemas.engine import ShowPages


class PageReports:
    """Numbers the changes of one engine's life, so that a reader notices what it missed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._book = PageBook(host.instance, host.epoch)

    async def listen(self) -> None:
        """Answer readers who missed something, from now on."""
        subject = subjects.show_pages(self._host.instance)
        _ = await self._host.bus.subscribe(subject, ShowPages, self._show)

    def say(self, change: PagesChange) -> None:
        """One message per change."""
        message = self._book.change(
            change.parent, change.stored, change.removed, cleared=change.cleared
        )
        self._host.bus.publish(subjects.kv_pages_changed(self._host.instance), message)

    def _show(self, received: Received[ShowPages]) -> None:
        self._host.bus.respond(received, self._book.show(received.message))
