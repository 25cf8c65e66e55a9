"""In which order queued requests are shown to the router: one file per policy, one table entry."""

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from components.scheduler.policies.fifo import Fifo


class QueueOrder(Protocol):
    """The waiting requests of one shard, in some order; iterating gives their ids in that order.

    A request *resumes* when an earlier attempt of it already ran; its client waits for the next
    token, so a policy should let it pass. ``remove`` of an unknown id is harmless.
    """

    def push(self, request_id: str, *, resumes: bool) -> None: ...

    def remove(self, request_id: str) -> None: ...

    def head(self, count: int) -> list[str]:
        """The first ``count`` ids."""
        ...

    def place(self, request_id: str) -> int:
        """How many stand before it."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


POLICIES: Final[dict[str, Callable[[], QueueOrder]]] = {"fifo": Fifo}
