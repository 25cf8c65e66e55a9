"""KV blocks on a GPU: copies in and out, in host memory, and in the order of CUDA's streams."""

import pytest

torch = pytest.importorskip("torch")

from components.worker.vllm.connector.blocks import HostCopy, KvBlocks  # noqa: E402
from tests.engine.connector.ranks import cache  # noqa: E402

#: Cycles of the GPU's clock for which its stream does nothing: about 0.1 s.
LONG = 200_000_000


def tiny(device):
    """Layers that differ; one is not made of words."""
    return cache(1, device)


def flash(device):
    """Eight layers as attention on GPUs has them: tokens before heads in memory."""
    torch.manual_seed(3)
    shape = (64, 16, 8, 128)
    layers = [torch.randn(shape).to(torch.bfloat16).permute(0, 2, 1, 3) for _ in range(8)]
    return [layer.to(device) for layer in layers]


def latent(device):
    """One head and no heads' dimension, a row that is no power of two; and bytes."""
    torch.manual_seed(4)
    latents = [torch.randn(64, 16, 576).to(torch.float16).to(device) for _ in range(3)]
    return [*latents, torch.randint(0, 256, (64, 16, 132), dtype=torch.uint8).to(device)]


@pytest.fixture
def layers():
    return tiny("cuda:0")


@pytest.fixture
def kv(layers):
    return KvBlocks(layers)


def same(layers, blocks, others, other_blocks):
    pairs = zip(layers, others, strict=True)
    return all(torch.equal(mine[blocks], theirs[other_blocks]) for mine, theirs in pairs)


@pytest.mark.parametrize("make", [tiny, flash, latent])
def test_blocks_leave_and_arrive_whatever_their_strides(make):
    layers = make("cuda:0")
    others = [torch.zeros_like(layer) for layer in layers]
    kv, other = KvBlocks(layers), KvBlocks(others)
    data = kv.bytes(4 * kv.block_bytes)
    kv.gather([9, 3, 40, 7], data)
    other.scatter([1, 2, 3], data, skip=1)
    assert same(others, [1, 2, 3], layers, [3, 40, 7])
    untouched = [number for number in range(kv.count) if number not in {1, 2, 3}]
    assert not any(other[untouched].any() for other in others)


@pytest.mark.parametrize("make", [tiny, flash, latent])
def test_a_gpu_and_a_cpu_agree_on_the_bytes_of_blocks(make):
    kv, on_cpu = KvBlocks(make("cuda:0")), KvBlocks(make("cpu"))
    ours, theirs = kv.bytes(3 * kv.block_bytes), on_cpu.bytes(3 * kv.block_bytes)
    kv.gather([5, 63, 0], ours)
    on_cpu.gather([5, 63, 0], theirs)
    assert torch.equal(ours.cpu(), theirs)


def test_layers_alike_are_copied_in_one_launch():
    pytest.importorskip("triton")
    kv = KvBlocks(flash("cuda:0"))
    assert (len(kv._groups), len(kv._plain)) == (1, 0)


def test_what_the_model_has_enqueued_is_copied_and_not_what_was_there_before(kv, layers):
    lane = kv.lane()
    torch.cuda._sleep(LONG)  # the model is slow ...
    for layer in layers:
        layer[7] = 3.0  # ... to write the block that is handed over
    fence = kv.fence()
    with lane.use():
        lane.after(fence)
        data = kv.bytes(kv.block_bytes)
        kv.gather([7], data)
        lane.finish()
    assert same_value(kv, data, 3.0)


def test_without_the_fence_the_copy_would_come_too_early(kv, layers):
    """The control of the test above: it can fail."""
    lane = kv.lane()
    data = kv.bytes(kv.block_bytes)
    index = torch.tensor([7], device="cuda:0")
    model = torch.cuda.Stream()
    for sleep, value in (
        (1, 2.0),
        (LONG, 3.0),
    ):  # first use loads a kernel, waiting for all streams
        with torch.cuda.stream(model):
            torch.cuda._sleep(sleep)
            for layer in layers:
                layer.index_fill_(0, index, value)
        if sleep == 1:
            with lane.use():
                kv.gather([7], data)
            torch.cuda.synchronize()
    with lane.use():
        kv.gather([7], data)
        lane.finish()
    assert not same_value(kv, data, 3.0)
    torch.cuda.synchronize()


def same_value(kv, data, value):
    """Are all numbers of this one block ``value``?"""
    arrived = [torch.zeros_like(layer) for layer in tiny("cuda:0")]
    KvBlocks(arrived).scatter([1], data)
    return all(bool((layer[1] == value).all()) for layer in arrived)


def test_host_memory_keeps_chunks_and_gives_them_back(kv, layers):
    others = cache(2, "cuda:0")
    other = KvBlocks(others)
    copy = HostCopy(kv, 5)
    lane = kv.lane()
    with lane.use():
        for start, blocks in ((0, [9, 3]), (2, [40, 41]), (4, [7])):
            data = kv.bytes(len(blocks) * kv.block_bytes)
            kv.gather(blocks, data)
            copy.keep(start, len(blocks), data)
        lane.finish()
        for start, count, data in copy.chunks():
            assert data.is_pinned()
            other.scatter(range(start, start + count), data)
        lane.finish()
    assert same(others, [0, 1, 2, 3, 4], layers, [9, 3, 40, 41, 7])
