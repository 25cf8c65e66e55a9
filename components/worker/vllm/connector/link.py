"""A link: one ordered pipe between a rank of P and a rank of D, which P's end fills.

How to think about it. Both ends are used by one thread each, in lockstep: what one end sends, the
other receives, in the same order, with the same sizes. There is no repair: after any error the
link is useless, both ends close it, and the next transfer opens a new one under a new name, so
nothing of the old one can be mistaken for something of the new. Everything that waits has a
deadline, and ``close`` from another thread ends a wait early.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

#: P's end is the first, D's the second; the order matters to the libraries below.
P_END: Final = 0
D_END: Final = 1
End = Literal[0, 1]

#: A tensor; the type is only nameable where torch is installed.
Tensor = Any


class LinkFailed(Exception):
    """The link cannot be opened, or broke: close it, and open another one for the next transfer."""


class LinkTimedOut(LinkFailed):
    """The other end did not come, or did nothing, until the deadline."""


class LinkUnavailable(Exception):
    """This machine or installation has no such link: choose another kind in the settings."""


class Pending(Protocol):
    """Something that was begun. The tensor must neither change nor be freed before ``wait``."""

    def wait(self) -> None:
        """Return when it is done; raises ``LinkFailed``, at the latest at its deadline."""


class Link(Protocol):
    """One end. ``send`` and ``receive`` take contiguous tensors on ``device``."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> Any:
        """Where tensors must be (a ``torch.device``)."""
        ...

    def send(self, tensor: Tensor, deadline_s: float) -> Pending:
        """Begin to send; ``deadline_s`` is a reading of ``time.monotonic``."""
        ...

    def receive(self, tensor: Tensor, deadline_s: float) -> Pending:
        """Begin to receive into ``tensor``."""
        ...

    def close(self) -> None:
        """Give everything back and make waits end with ``LinkFailed``. From any thread; twice."""


class Board(Protocol):
    """What both ends of one link put up for each other to read (``rendezvous.py``)."""

    @property
    def link(self) -> str: ...

    def post(self, key: str, value: bytes) -> None:
        """Put up for the other end (and for oneself)."""

    def read(self, key: str, deadline_s: float) -> bytes:
        """Wait for a key of either end; raises ``LinkTimedOut``."""
        ...

    def has(self, key: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class LinkPlace:
    """Where this end is: its device, and the address or interface that Gloo listens on."""

    device: Any
    address: str = "127.0.0.1"
    interface: str = ""


class Opener(Protocol):
    """Makes this end of a link, while the other end does the same."""

    def __call__(self, board: Board, end: End, place: LinkPlace, deadline_s: float) -> Link:
        """Raises ``LinkFailed``, or ``LinkUnavailable``."""
        ...


def opener(kind: Literal["gloo", "nccl"], device: Any) -> Opener:
    """What opens links of this kind to ``device``; what that needs is loaded now, not at the first.

    Raises ``LinkUnavailable`` where it cannot work at all.
    """
    if kind == "gloo":
        from components.worker.vllm.connector.gloo import open_gloo  # noqa: PLC0415  (needs torch)

        return open_gloo
    from components.worker.vllm.connector import nccl  # noqa: PLC0415  (needs vLLM)

    nccl.load(device)
    return nccl.open_nccl
