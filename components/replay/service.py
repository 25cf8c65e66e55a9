"""The past as a component: one process that reads the streams and answers questions about them."""

from pathlib import Path

from bus.history import History
from components.host.host import Host
from components.replay.settings import ReplaySettings


class ReplayService:
    """Reads with a key of its own, because who hears live subjects may not read streams."""

    def __init__(self, host: Host, settings: ReplaySettings) -> None:
        self._host = host
        self._settings = settings
        key_file = Path(settings.history_key_file) if settings.history_key_file else None
        self._history = History(
            host.settings.nats_url,
            key_file,
            prefix=host.settings.subject_prefix,
        )

    async def start(self) -> None:
        await self._history.__aenter__()

    async def drain(self, deadline_s: float) -> None:
        """Questions are answered at once; nothing is under way."""

    async def stop(self) -> None:
        await self._history.__aexit__(None, None, None)

    def heartbeat(self) -> dict[str, object]:
        return {}
