"""What a component promises to the process that runs it."""

from typing import Protocol


class Component(Protocol):
    """One component's service. ``components.host.process.run`` calls it from a single task."""

    async def start(self) -> None:
        """Subscribe and open; return when ready to serve.

        Raises ``CannotStart`` when something outside is missing (exit 69); any other exception is a
        fault (exit 70). ``stop`` follows in both cases.
        """

    async def drain(self, deadline_s: float) -> None:
        """Take no new work, finish what runs, return when done or after ``deadline_s``.

        Not called when ``start`` failed. Heartbeats say ``draining`` meanwhile.
        """

    async def stop(self) -> None:
        """Release everything, finished or not. Also follows a failed start; harmless twice."""

    def heartbeat(self) -> dict[str, object]:
        """More fields of ``HeartbeatSent``: owns, role, model, shard, watermark, running, address.

        Also ``state="degraded"`` while ready but not well. Called every 250 ms from the moment that
        the component exists, before ``start`` and after ``stop`` too; cheap, and must not raise.
        """
        ...
