"""Questions that one of several registries answers, and what they tell each other."""

from collections.abc import Callable
from typing import TypeVar

from bus import subjects
from bus.bus import Received, Subscription
from components.host.host import Host
from schemas.message import Message

M = TypeVar("M", bound=Message)


class Questions:
    """What one part of the registry hears."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._subscriptions: list[Subscription] = []

    async def answer(self, question: type[M], handler: Callable[[Received[M]], None]) -> None:
        """Be one of those who are asked this."""
        subject = subjects.function_of(question)()
        await self._listen(subject, question, handler, queue="registry")

    async def hear(
        self, subject: str, event: type[M], handler: Callable[[Received[M]], None]
    ) -> None:
        """Hear what other registries say; what this one said itself it knows."""

        def from_others(received: Received[M]) -> None:
            if (received.source, received.epoch) != (self._host.instance, self._host.epoch):
                handler(received)

        await self._listen(subject, event, from_others)

    async def stop(self) -> None:
        """Hear nothing more. Harmless twice."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()

    async def _listen(
        self,
        subject: str,
        message: type[M],
        handler: Callable[[Received[M]], None],
        queue: str | None = None,
    ) -> None:
        bus = self._host.bus
        self._subscriptions.append(await bus.subscribe(subject, message, handler, queue=queue))
