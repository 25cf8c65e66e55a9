"""NCCL by itself: an id that came over NATS, a communicator of one rank, its end and its errors."""

import ctypes
import time

import pytest

torch = pytest.importorskip("torch")
wrapper = pytest.importorskip("vllm.distributed.device_communicators.pynccl_wrapper")

from components.worker.vllm.connector.control import Control  # noqa: E402
from components.worker.vllm.connector.link import (  # noqa: E402
    P_END,
    LinkPlace,
    LinkTimedOut,
    opener,
)
from components.worker.vllm.connector.rendezvous import NatsBoard, link_name  # noqa: E402
from tests.engine.connector.ends import NAMES  # noqa: E402

DEVICE = torch.device("cuda:0")
UINT8 = 1


@pytest.fixture
def library():
    return wrapper.NCCLLibrary()


@pytest.fixture
def communicator(library):
    torch.cuda.set_device(DEVICE)
    made = library.ncclCommInitRank(1, library.ncclGetUniqueId(), 0)
    yield made
    library.ncclCommAbort(made)


def pointer(tensor):
    return wrapper.buffer_type(tensor.data_ptr())


def test_an_id_crosses_nats_whole_and_makes_a_communicator(library, nats_server):
    controls = [
        Control(name, 5, nats_server.url, key_file=nats_server.key_file("connector", name))
        for name in NAMES
    ]
    for control in controls:
        control.start(lambda _: None, lambda _: None)
    name = link_name(*NAMES, 7, 1)
    boards = [
        control.rendezvous.board(name, NAMES[1 - end]) for end, control in enumerate(controls)
    ]
    made = bytes(library.ncclGetUniqueId().internal)
    boards[0].post("nccl-unique-id", made)
    came = boards[1].read("nccl-unique-id", time.monotonic() + 5)
    for control in controls:
        control.stop()
    assert came == made
    assert len(came) == 128
    unique_id = wrapper.ncclUniqueId()
    ctypes.memmove(unique_id.internal, came, len(came))
    torch.cuda.set_device(DEVICE)
    communicator = library.ncclCommInitRank(1, unique_id, 0)
    library.ncclCommDestroy(communicator)


def test_a_rank_sends_to_itself_what_it_receives(library, communicator):
    sent = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, device=DEVICE)
    received = torch.zeros_like(sent)
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    library.ncclGroupStart()
    library.ncclSend(pointer(sent), sent.numel(), UINT8, 0, communicator, stream.cuda_stream)
    library.ncclRecv(pointer(received), sent.numel(), UINT8, 0, communicator, stream.cuda_stream)
    library.ncclGroupEnd()
    stream.synchronize()
    assert torch.equal(sent, received)


def test_a_peer_that_is_not_in_the_communicator_is_an_error(library, communicator):
    byte = torch.zeros(1, dtype=torch.uint8, device=DEVICE)
    stream = torch.cuda.Stream(DEVICE)
    with pytest.raises(RuntimeError, match="NCCL error"):
        library.ncclSend(pointer(byte), 1, UINT8, 5, communicator, stream.cuda_stream)


def test_an_end_whose_peer_never_comes_gives_up_and_the_gpu_still_works():
    board = NatsBoard("a link", lambda _key, _value: None)
    open_link = opener("nccl", DEVICE)
    began_s = time.monotonic()
    with pytest.raises(LinkTimedOut):
        open_link(board, P_END, LinkPlace(DEVICE), began_s + 1.0)
    assert time.monotonic() - began_s < 3.0
    assert torch.ones(8, device=DEVICE).sum().item() == 8
