"""Links between GPUs: a NCCL communicator of two, made from a unique id that came over NATS.

vLLM's ``PyNcclCommunicator`` is used without a process group: no TCPStore, and no watchdog that
would take the whole worker down. NCCL has no deadline of its own, so everything that waits here
looks at the clock, and ``close`` aborts the communicator, which ends whatever hangs in it.

P makes the id and posts it; both ends then enter the initialisation, which is a collective, at the
same time. It cannot be interrupted: an end whose peer never comes leaves a thread behind in it.

Run (``tests/gpu``) with NCCL 2.28.9 on one H200 that both ends shared, which NCCL allows when they
seem to be on two hosts and speak over sockets: links, whole pulls, staging, a killed P. Two GPUs,
and so NVLink, PCIe and InfiniBand, have not confirmed it yet.
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
from components.worker.vllm.connector.link_base import LinkBase

_ID_KEY: Final = "nccl-unique-id"
_POLL_S: Final = 0.0001


def load(device: Any) -> None:
    """Load NCCL, its network and its kernels: seconds that a first transfer does not have.

    Raises ``LinkUnavailable``.
    """
    if device.type != "cuda":
        raise LinkUnavailable(f"NCCL moves KV between GPUs; this cache is on {device}")
    _, wrapper = _modules()
    library = _library(wrapper)
    with torch.cuda.device(device):
        try:
            alone = library.ncclCommInitRank(1, library.ncclGetUniqueId(), 0)
            library.ncclCommDestroy(alone)
        except RuntimeError as error:
            raise LinkUnavailable(f"NCCL does not work on {device}: {error}") from error


def open_nccl(board: Board, end: End, place: LinkPlace, deadline_s: float) -> Link:
    """Open this end; the other one has until ``deadline_s`` to do the same."""
    pynccl, wrapper = _modules()
    if end == P_END:
        unique_id = bytes(_library(wrapper).ncclGetUniqueId().internal)
        board.post(_ID_KEY, unique_id)
    else:
        unique_id = board.read(_ID_KEY, deadline_s)
    opening = _Opening(pynccl.PyNcclCommunicator, unique_id, end, place.device)
    return _NcclLink(board.link, 1 - end, place.device, opening.result(board.link, deadline_s))


def _modules() -> tuple[Any, Any]:
    """The communicator of vLLM, and its wrapper around the library."""
    try:
        pynccl = importlib.import_module("vllm.distributed.device_communicators.pynccl")
        wrapper = importlib.import_module("vllm.distributed.device_communicators.pynccl_wrapper")
    except ImportError as error:
        raise LinkUnavailable(f"no NCCL in this vLLM: {error}") from error
    return pynccl, wrapper


def _library(wrapper: Any) -> Any:
    try:
        return wrapper.NCCLLibrary()
    except (OSError, RuntimeError, AttributeError) as error:  # none, or too old for this vLLM
        raise LinkUnavailable(f"no NCCL library that this vLLM can use: {error}") from error


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
            if not made.disabled:
                _greet(made, end, device)
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


def _greet(communicator: Any, end: int, device: Any) -> None:
    """One byte each way. NCCL connects two ranks at their first send, and blocks until it has."""
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        byte = torch.zeros(1, dtype=torch.uint8, device=device)
        calls = (communicator.send, communicator.recv)
        for call in calls if end == P_END else reversed(calls):
            call(byte, 1 - end, stream)
        stream.synchronize()


class _NcclLink(LinkBase):
    """Its handle is the communicator.

    What it sends and receives is enqueued on a stream of its own, behind what the calling thread
    has enqueued on its own. So that thread's stream never waits for a peer: it can be synchronised
    without a deadline.
    """

    def __init__(self, name: str, peer: int, device: Any, handle: Any) -> None:
        super().__init__(name, peer, device, handle)
        self._stream = torch.cuda.Stream(device)

    def _begin(self, call: str, tensor: Tensor, deadline_s: float) -> "_NcclPending":
        communicator = self._handle
        self.check_open()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        # If the transfer is given up, the memory is not used again before the stream is past it.
        tensor.record_stream(self._stream)
        try:
            getattr(communicator, call)(tensor, self._peer, self._stream)
        except RuntimeError as error:
            raise LinkFailed(f"link {self._name}: {error}") from error
        if communicator.disabled:  # a destroyed communicator takes calls and does nothing
            raise LinkFailed(f"link {self._name} is closed")
        event = torch.cuda.Event()
        event.record(self._stream)
        return _NcclPending(self, event, tensor, deadline_s)

    def _end(self, handle: Any) -> None:
        """Abort, also what hangs; vLLM waits 5 s for that at most."""
        handle.destroy()


class _NcclPending:
    def __init__(self, link: _NcclLink, event: Any, tensor: Tensor, deadline_s: float) -> None:
        self._link = link
        self._event = event
        self._tensor = tensor
        self._deadline_s = deadline_s

    def wait(self) -> None:
        while not self._is_done():
            self._link.check_open()
            if time.monotonic() >= self._deadline_s:
                raise LinkTimedOut(f"link {self._link.name}: not done in time")
            time.sleep(_POLL_S)
        self._link.check_open()  # an abort ends what was enqueued, but not well

    def _is_done(self) -> bool:
        try:
            return bool(self._event.query())
        except RuntimeError as error:  # CUDA reports here what went wrong on the stream before
            raise LinkFailed(f"link {self._link.name}: {error}") from error
