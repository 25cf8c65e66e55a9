"""The NCCL lane's paths without a GPU, with a communicator of threads in place of vLLM's.

What NCCL itself does is for `tests/gpu`.
"""

import contextlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector import nccl
from components.worker.vllm.connector.link import (
    D_END,
    P_END,
    LinkFailed,
    LinkPlace,
    LinkTimedOut,
    LinkUnavailable,
    opener,
)
from components.worker.vllm.connector.rendezvous import NatsBoard

PLACE = LinkPlace(torch.device("cuda:0"))


class Operation:
    """A send or a receive; both are done once they have met."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.done = threading.Event()


class FakeStream:
    def __init__(self, device=None):
        self.operations = []

    def wait_stream(self, other):
        pass

    def synchronize(self):
        for operation in self.operations:
            operation.done.wait(5)


class FakeEvent:
    def record(self, stream):
        self._operations = list(stream.operations)

    def query(self):
        return all(operation.done.is_set() for operation in self._operations)


class FakeNccl:
    """The library: rooms by unique id, in which two ranks meet."""

    def __init__(self):
        self.barriers = {}
        self.waiting = {}
        self.lock = threading.Lock()
        self.made = []
        self.disabled = False

    def from_unique_id_bytes(self, unique_id, rank, ranks, device):
        assert (len(unique_id), ranks) == (128, 2)
        made = FakeCommunicator(self, unique_id, rank)
        with self.lock:
            self.made.append(made)
            barrier = self.barriers.setdefault(unique_id, threading.Barrier(2))
        if not self.disabled:
            barrier.wait(3)
        return made


class FakeCommunicator:
    def __init__(self, library, unique_id, rank):
        self.disabled = library.disabled
        self._library = library
        self._room = unique_id
        self._rank = rank
        self._begun = []

    def send(self, tensor, peer, stream):
        self._meet((self._rank, peer), "send", tensor, stream)

    def recv(self, tensor, peer, stream):
        self._meet((peer, self._rank), "recv", tensor, stream)

    def _meet(self, way, what, tensor, stream):
        if self.disabled:
            return
        mine = Operation(tensor)
        stream.operations.append(mine)
        self._begun.append(mine)
        other = "recv" if what == "send" else "send"
        with self._library.lock:
            waiting = self._library.waiting.setdefault((self._room, way, other), [])
            if not waiting:
                self._library.waiting.setdefault((self._room, way, what), []).append(mine)
                return
            theirs = waiting.pop(0)
        source, target = (mine, theirs) if what == "send" else (theirs, mine)
        target.tensor.copy_(source.tensor)
        for operation in (mine, theirs):
            operation.done.set()

    def destroy(self):
        self.disabled = True
        for operation in self._begun:  # an abort ends what is enqueued
            operation.done.set()


@pytest.fixture
def library(monkeypatch):
    fake = FakeNccl()
    ids = iter(range(1, 100))
    base = "vllm.distributed.device_communicators"
    nccl_library = SimpleNamespace(
        ncclGetUniqueId=lambda: SimpleNamespace(internal=bytes([next(ids)]) * 128)
    )
    wrapper = SimpleNamespace(NCCLLibrary=lambda: nccl_library)
    pynccl = SimpleNamespace(PyNcclCommunicator=fake)
    monkeypatch.setitem(sys.modules, f"{base}.pynccl", pynccl)
    monkeypatch.setitem(sys.modules, f"{base}.pynccl_wrapper", wrapper)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    zeros = torch.zeros

    def zeros_here(*size, device, **more):  # a CPU's, whatever device it is asked for
        return zeros(*size, **more)

    monkeypatch.setattr(torch, "zeros", zeros_here)
    return fake


def boards():
    """Two ends' boards, each of which hears what the other posts."""
    ends: list[NatsBoard] = []
    for other in (1, 0):
        post = partial(lambda to, key, value: ends[to].put(key, value), other)
        ends.append(NatsBoard("a link", post))
    return ends


def opened(wait_s=2.0):
    deadline_s = time.monotonic() + wait_s
    p_board, d_board = boards()
    with ThreadPoolExecutor(2) as pool:
        ends = [
            pool.submit(nccl.open_nccl, p_board, P_END, PLACE, deadline_s),
            pool.submit(nccl.open_nccl, d_board, D_END, PLACE, deadline_s),
        ]
        return [end.result() for end in ends]


def soon(wait_s=1.0):
    return time.monotonic() + wait_s


def data(*values):
    return torch.tensor(values, dtype=torch.uint8)


def test_what_one_end_sends_the_other_receives_and_the_receipt_comes_back(library):
    p, d = opened()
    there, back = data(0, 0, 0), data(0)
    receiving = d.receive(there, soon())
    p.send(data(1, 2, 3), soon()).wait()
    receiving.wait()
    coming = p.receive(back, soon())
    d.send(data(9), soon()).wait()
    coming.wait()
    assert (there.tolist(), back.tolist()) == ([1, 2, 3], [9])
    assert p.device == PLACE.device


def test_a_transfer_that_the_other_end_does_not_join_ends_at_the_deadline(library):
    _, d = opened()
    with pytest.raises(LinkTimedOut):
        d.receive(data(0), soon(0.05)).wait()


def test_closing_wakes_who_waits_and_aborts_the_communicator(library):
    _, d = opened()
    receiving = d.receive(data(0), soon(5))
    threading.Timer(0.05, d.close).start()
    began_s = time.monotonic()
    with pytest.raises(LinkFailed):
        receiving.wait()
    assert time.monotonic() - began_s < 1
    assert library.made[-1].disabled or library.made[-2].disabled
    d.close()  # twice is harmless


def test_what_was_done_only_because_of_an_abort_counts_as_failed(library):
    _, d = opened()
    receiving = d.receive(data(0), soon(5))
    d.close()
    with pytest.raises(LinkFailed):
        receiving.wait()


def test_a_closed_link_takes_nothing_any_more(library):
    p, _ = opened()
    p.close()
    with pytest.raises(LinkFailed):
        p.send(data(1), soon())


def test_a_communicator_that_was_destroyed_beneath_us_is_noticed(library):
    p, _ = opened()
    for made in library.made:
        made.destroy()
    with pytest.raises(LinkFailed):
        p.send(data(1), soon())


def test_an_end_that_waits_in_vain_gives_up_and_what_is_made_too_late_is_destroyed(library):
    p_board, _ = boards()
    with pytest.raises(LinkTimedOut):
        nccl.open_nccl(p_board, P_END, PLACE, soon(0.1))
    late = nccl._Opening(
        sys.modules["vllm.distributed.device_communicators.pynccl"].PyNcclCommunicator,
        bytes([1]) * 128,
        D_END,
        PLACE.device,
    )
    late.result("a link", soon())
    until = soon(2)
    while not library.made[0].disabled:
        assert time.monotonic() < until, "nobody destroyed it"
        time.sleep(0.01)


def test_the_puller_waits_for_the_id_no_longer_than_its_deadline(library):
    _, d_board = boards()
    with pytest.raises(LinkTimedOut):
        nccl.open_nccl(d_board, D_END, PLACE, soon(0.05))


def test_nccl_that_is_switched_off_is_said_so(library):
    library.disabled = True
    with pytest.raises(LinkUnavailable, match="VLLM_DISABLE_PYNCCL"):
        opened()


def test_a_cpu_cache_has_no_such_link():
    with pytest.raises(LinkUnavailable, match="GPU"):
        opener("nccl", torch.device("cpu"))


@pytest.fixture
def wrapper(library, monkeypatch):
    """What vLLM has of the library, with a communicator of one rank that does or does not work."""
    found = sys.modules["vllm.distributed.device_communicators.pynccl_wrapper"]
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    return found


def test_the_library_is_loaded_and_tried_before_the_first_transfer(wrapper):
    tried = []
    alone = SimpleNamespace(
        ncclGetUniqueId=lambda: "an id",
        ncclCommInitRank=lambda ranks, unique_id, rank: tried.append((ranks, unique_id, rank)),
        ncclCommDestroy=tried.append,
    )
    wrapper.NCCLLibrary = lambda: alone
    assert opener("nccl", PLACE.device) is nccl.open_nccl
    assert tried == [(1, "an id", 0), None]


@pytest.mark.parametrize("error", [OSError("none"), AttributeError("too old"), RuntimeError("no")])
def test_a_library_that_vllm_cannot_use_is_said_at_the_start(wrapper, error):
    def refuse():
        raise error

    wrapper.NCCLLibrary = refuse
    with pytest.raises(LinkUnavailable, match=str(error)):
        opener("nccl", PLACE.device)


def test_a_gpu_that_nccl_does_not_work_on_is_said_at_the_start(wrapper):
    def fail(*_):
        raise RuntimeError("NCCL error: unhandled cuda error")

    wrapper.NCCLLibrary = lambda: SimpleNamespace(ncclGetUniqueId=lambda: 1, ncclCommInitRank=fail)
    with pytest.raises(LinkUnavailable, match="unhandled"):
        opener("nccl", PLACE.device)


def test_an_error_of_cuda_while_it_waits_is_the_links_failure(library, monkeypatch):
    _, d = opened()
    receiving = d.receive(data(0), soon())

    def query(_event):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(FakeEvent, "query", query)
    with pytest.raises(LinkFailed, match="illegal"):
        receiving.wait()
