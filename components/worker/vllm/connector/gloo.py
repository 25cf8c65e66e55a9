"""Links over TCP between CPUs: a Gloo process group of two, which meets over NATS.

No ``init_process_group``, no TCPStore and no fixed port: ``ProcessGroupGloo`` takes any c10d store,
and ours is the link's board. Gloo itself listens on a free port of ``place.address``.
"""

import contextlib
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import torch  # type: ignore[import-not-found]
from torch.distributed import Store  # type: ignore[import-not-found]

from components.worker.vllm.connector.link import (
    Board,
    End,
    Link,
    LinkFailed,
    LinkPlace,
    LinkTimedOut,
    LinkUnavailable,
    Tensor,
)
from components.worker.vllm.connector.link_base import LinkBase

try:
    from torch.distributed import ProcessGroupGloo
except ImportError:  # a torch without Gloo
    ProcessGroupGloo = None

_TAG: Final = 0
_NEVER_SENT: Final = 1
_WAIT_S_MIN: Final = 0.001
#: Gloo waits five times its timeout for a peer that took the connection and then says nothing.
_CONNECT_PATIENCE: Final = 5


def open_gloo(board: Board, end: End, place: LinkPlace, deadline_s: float) -> Link:
    """Open this end; the other one has until ``deadline_s`` to do the same."""
    if ProcessGroupGloo is None:
        raise LinkUnavailable("this torch was built without Gloo")
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise LinkTimedOut(f"link {board.link}: no time left to open it")
    options = ProcessGroupGloo._Options()  # noqa: SLF001  (torch offers no other way to name a device)
    where = {"interface": place.interface} if place.interface else {"hostname": place.address}
    options._timeout = timedelta(seconds=left_s / _CONNECT_PATIENCE)  # noqa: SLF001
    try:
        options._devices = [ProcessGroupGloo.create_device(**where)]  # noqa: SLF001
        group = ProcessGroupGloo(_BoardStore(board, deadline_s), end, 2, options)
    except (RuntimeError, ValueError) as error:
        raise _failure(board.link, deadline_s, error) from error
    return _GlooLink(board.link, 1 - end, torch.device("cpu"), group)


class _BoardStore(Store):  # type: ignore[misc]
    """The board as Gloo knows it. Gloo only sets, waits and gets; the rest is refused."""

    def __init__(self, board: Board, deadline_s: float) -> None:
        super().__init__()
        self._board = board
        self._deadline_s = deadline_s

    # c10d gives and takes bytes, text or lists of numbers, depending on the version.

    def set(self, key: str, value: Any) -> None:
        self._board.post(key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        return self._board.read(key, self._deadline_s)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self._board.read(key, self._deadline_s)

    def check(self, keys: Sequence[str]) -> bool:
        return all(self._board.has(key) for key in keys)

    def add(self, key: str, amount: int) -> int:
        raise NotImplementedError(f"nobody owns this store, so nobody can count {key!r} in it")

    def set_timeout(self, timeout: timedelta) -> None:
        return

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=max(_WAIT_S_MIN, self._deadline_s - time.monotonic()))


class _GlooLink(LinkBase):
    """Its handle is the process group."""

    def _begin(self, call: str, tensor: Tensor, deadline_s: float) -> "_GlooPending":
        group = self._handle
        self.check_open()
        try:
            work = getattr(group, call)([tensor], self._peer, _TAG)
        except RuntimeError as error:
            raise _failure(self._name, deadline_s, error) from error
        return _GlooPending(self, work, tensor, deadline_s)

    def _end(self, handle: Any) -> None:
        """Close the sockets now, and so wake whoever waits, here and at the other end.

        Gloo has no call for that (``abort`` and ``shutdown`` do nothing, and a group is only taken
        down when the last wait is over); but it closes a pair on which a wait has timed out.
        """
        with contextlib.suppress(RuntimeError):
            handle.recv([torch.empty(1, dtype=torch.uint8)], self._peer, _NEVER_SENT).wait(
                timedelta(seconds=_WAIT_S_MIN)
            )


class _GlooPending:
    def __init__(self, link: _GlooLink, work: Any, tensor: Tensor, deadline_s: float) -> None:
        self._link = link
        self._work = work
        self._tensor = tensor  # kept alive until it has left, or come
        self._deadline_s = deadline_s

    def wait(self) -> None:
        left_s = max(_WAIT_S_MIN, self._deadline_s - time.monotonic())
        try:
            self._work.wait(timedelta(seconds=left_s))
        except RuntimeError as error:
            raise _failure(self._link.name, self._deadline_s, error) from error
        self._link.check_open()


def _failure(link: str, deadline_s: float, error: Exception) -> LinkFailed:
    kind = LinkTimedOut if time.monotonic() >= deadline_s else LinkFailed
    return kind(f"link {link}: {str(error).splitlines()[0][:300]}")
