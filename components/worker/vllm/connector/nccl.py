"""Links between GPUs: a NCCL communicator of two, made from a unique id that came over NATS.

vLLM's ``PyNcclCommunicator`` is used without a process group: no TCPStore, and no watchdog that
would take the whole worker down. NCCL has no deadline of its own, so everything that waits here
looks at the clock, and ``close`` aborts the communicator, which ends whatever hangs in it.

P makes the id and posts it; both ends then enter the initialisation, which is a collective, at the
same time.
"""

import importlib
import threading
import time
from typing import Any, Final

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector.link import (
    P_END,
    Board,
    End,
    Link,
    LinkFailed,
    LinkPlace,
    LinkTimedOut,
    LinkUnavailable,
    Tensor,
)

_ID_KEY: Final = "nccl-unique-id"
_POLL_S: Final = 0.0001


def open_nccl(board: Board, end: End, place: LinkPlace, deadline_s: float) -> Link:
    """Open this end; the other one has until ``deadline_s`` to do the same."""
    if place.device.type != "cuda":
        raise LinkUnavailable(f"NCCL moves KV between GPUs; this cache is on {place.device}")
    try:
        pynccl = importlib.import_module("vllm.distributed.device_communicators.pynccl")
        wrapper = importlib.import_module("vllm.distributed.device_communicators.pynccl_wrapper")
    except ImportError as error:
        raise LinkUnavailable(f"no NCCL in this vLLM: {error}") from error
    if end == P_END:
        try:
            unique_id = bytes(wrapper.NCCLLibrary().ncclGetUniqueId().internal)
        except (OSError, RuntimeError) as error:
            raise LinkUnavailable(f"no NCCL library: {error}") from error
        board.post(_ID_KEY, unique_id)
    else:
        unique_id = board.read(_ID_KEY, deadline_s)
    opening = _Opening(pynccl.PyNcclCommunicator, unique_id, end, place.device)
    return _NcclLink(board.link, opening.result(board.link, deadline_s), 1 - end, place.device)


class _Opening:
    """The initialisation in a thread that may be left behind: it cannot be interrupted."""

    def __init__(self, communicator: Any, unique_id: bytes, end: int, device: Any) -> None:
        self._made: list[Any] = []
        self._failed: list[Exception] = []
        self._late = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        arguments = (communicator, unique_id, end, device)
        thread = threading.Thread(target=self._run, args=arguments, name="nccl open", daemon=True)
        thread.start()

    def _run(self, communicator: Any, unique_id: bytes, end: int, device: Any) -> None:
        try:
            made = communicator.from_unique_id_bytes(unique_id, end, 2, device)
        except Exception as error:  # noqa: BLE001  (carried over to whoever waits)
            self._failed.append(error)
        else:
            with self._lock:
                if not self._late:
                    self._made.append(made)
                    made = None
            if made is not None:
                made.destroy()
        self._done.set()

    def result(self, link: str, deadline_s: float) -> Any:
        if not self._done.wait(max(0.0, deadline_s - time.monotonic())):
            with self._lock:
                self._late = not self._made
            if self._late:
                raise LinkTimedOut(f"link {link}: the other end did not come")
        if self._failed:
            raise LinkFailed(f"link {link}: {self._failed[0]}") from self._failed[0]
        if self._made[0].disabled:
            raise LinkUnavailable("NCCL is switched off (VLLM_DISABLE_PYNCCL)")
        return self._made[0]


class _NcclLink:
    def __init__(self, name: str, communicator: Any, peer: int, device: Any) -> None:
        self._name = name
        self._communicator = communicator
        self._peer = peer
        self._device = device
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def device(self) -> Any:
        return self._device

    def send(self, tensor: Tensor, deadline_s: float) -> "_NcclPending":
        return self._begin("send", tensor, deadline_s)

    def receive(self, tensor: Tensor, deadline_s: float) -> "_NcclPending":
        return self._begin("recv", tensor, deadline_s)

    def _begin(self, what: str, tensor: Tensor, deadline_s: float) -> "_NcclPending":
        communicator = self._communicator
        # A destroyed communicator takes calls and does nothing.
        if communicator is None or communicator.disabled:
            raise LinkFailed(f"link {self._name} is closed")
        stream = torch.cuda.current_stream(self._device)
        try:
            getattr(communicator, what)(tensor, self._peer, stream)
        except RuntimeError as error:
            raise LinkFailed(f"link {self._name}: {error}") from error
        event = torch.cuda.Event()
        event.record(stream)
        return _NcclPending(self, event, tensor, deadline_s)

    def close(self) -> None:
        with self._lock:
            communicator, self._communicator = self._communicator, None
        if communicator is not None:
            communicator.destroy()

    @property
    def closed(self) -> bool:
        return self._communicator is None


class _NcclPending:
    def __init__(self, link: _NcclLink, event: Any, tensor: Tensor, deadline_s: float) -> None:
        self._link = link
        self._event = event
        self._tensor = tensor
        self._deadline_s = deadline_s

    def wait(self) -> None:
        while not self._event.query():
            if self._link.closed:
                raise LinkFailed(f"link {self._link.name} was closed")
            if time.monotonic() >= self._deadline_s:
                raise LinkTimedOut(f"link {self._link.name}: not done in time")
            time.sleep(_POLL_S)
        if self._link.closed:  # an abort ends what was enqueued, but not well
            raise LinkFailed(f"link {self._link.name} was closed")
