"""What an agent may ask of an engine that is not in its own process, besides ``Engine``."""

from typing import Protocol, runtime_checkable

from schemas.fleet import HeartbeatSent


@runtime_checkable
class EngineElsewhere(Protocol):
    """An engine behind an address. It may be away while its agent lives."""

    @property
    def is_away(self) -> bool:
        """Nothing that is submitted now would be answered."""
        ...

    def heartbeat(self) -> dict[str, object]:
        """More fields of the agent's heartbeat: ``address``, ``state``. Cheap; must not raise."""
        ...

    def on_heartbeat(self, heartbeat: HeartbeatSent) -> None:
        """Another worker lives; ``address`` is where its engine can be met."""
