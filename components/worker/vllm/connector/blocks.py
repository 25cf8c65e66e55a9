"""Blocks of the KV cache as contiguous bytes, and back.

vLLM gives one tensor per layer whose first dimension is blocks (``[B, H, N, C]``; the strides
differ by attention backend and device). Bytes of a chunk of n blocks are

    layer 0: n blocks, layer 1: n blocks, ...

each block in logical order, whatever its strides: the two ends only have to agree on the shapes and
types of a block (``connector.layout_of``).
"""

import importlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector.link import Tensor


class KvBlocks:
    """All layers of one rank's KV cache. ``lane`` must be entered by the thread that copies."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        if not layers:
            raise ValueError("no KV cache")
        if len({layer.device for layer in layers}) != 1:
            raise ValueError("the layers' KV caches are on different devices")
        self.layers = tuple(layers)
        self.device = layers[0].device
        self.count = min(layer.shape[0] for layer in layers)
        sizes = [math.prod(kv.shape[1:]) * kv.element_size() for kv in layers]
        self.block_bytes: int = sum(sizes)
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        self._groups, self._plain = _grouped(list(zip(layers, starts, sizes, strict=True)))
        if self._groups:  # compiled now, not in the first transfer
            block = self.bytes(self.block_bytes)
            self.gather([0], block)
            self.scatter([0], block)

    def bytes(self, size: int) -> Tensor:
        """Room for so many bytes, where the cache is."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def gather(self, ids: Sequence[int], out: Tensor) -> None:
        """Copy blocks ``ids`` into ``out`` (exactly their bytes)."""
        index = self._index(ids)
        for kv, part in self._parts(out, len(ids)):
            torch.index_select(kv, 0, index, out=part)
        for group in self._groups:
            group.copy(index, out, 0, out=True)

    def scatter(self, ids: Sequence[int], data: Tensor, skip: int = 0) -> None:
        """Copy ``data``, as ``gather`` made it, into blocks ``ids``, but for its first ``skip``.

        ``data`` may be in host memory.
        """
        index = self._index(ids)
        data = data.to(self.device, non_blocking=True)
        for kv, part in self._parts(data, skip + len(ids)):
            kv.index_copy_(0, index, part[skip:])
        for group in self._groups:
            group.copy(index, data, skip, out=False)

    def _index(self, ids: Sequence[int]) -> Tensor:
        assert 0 <= min(ids) <= max(ids) < self.count, "blocks that the cache does not have"
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _parts(self, data: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
        assert data.numel() == blocks * self.block_bytes
        return [
            (kv, data[start * blocks :][: size * blocks].view(kv.dtype).view(blocks, *kv.shape[1:]))
            for kv, start, size in self._plain
        ]

    # On a GPU copies run on streams of their own, beside the model's.

    def fence(self) -> Any:
        """What the model has enqueued until now; call it in the model's thread."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def lane(self) -> "Lane":
        """A stream for one thread (on a CPU: nothing)."""
        return Lane(self.device)


#: A layer's cache, the bytes of one block that lie before it in a chunk, and its own.
_Place = tuple[Tensor, int, int]


def _grouped(places: list[_Place]) -> tuple[list[Any], list[_Place]]:
    """What is copied in one launch for many layers, and what is copied layer by layer."""
    if places[0][0].device.type != "cuda":
        return [], places
    try:
        kernels = importlib.import_module("components.worker.vllm.connector.block_kernels")
    except ImportError:  # no Triton: slower, and else the same
        return [], places
    alike: dict[Any, list[_Place]] = defaultdict(list)
    plain = []
    for place in places:
        kv, start, _ = place
        if kernels.is_in_words(kv, start):
            alike[kernels.group_key(kv)].append(place)
        else:
            plain.append(place)
    groups = [
        kernels.LayerGroup([kv for kv, _, _ in group], [start for _, start, _ in group])
        for group in alike.values()
    ]
    return groups, plain


class HostCopy:
    """Blocks in host memory, in the chunks in which they came. For one thread at a time."""

    def __init__(self, kv: KvBlocks, blocks: int) -> None:
        # Pinned, where there is a GPU: else its copies would not run beside the host's work.
        self._data = torch.empty(
            blocks * kv.block_bytes, dtype=torch.uint8, pin_memory=kv.device.type == "cuda"
        )
        self._block_bytes = kv.block_bytes
        self._chunks: list[tuple[int, int]] = []

    def keep(self, start: int, count: int, data: Tensor) -> None:
        """A chunk of ``count`` blocks that begins with block ``start``; 0 begins anew."""
        if start == 0:
            self._chunks.clear()
        self._chunks.append((start, count))
        self._part(start, count).copy_(data, non_blocking=True)

    def chunks(self) -> Iterator[tuple[int, int, Tensor]]:
        """``(start, count, data)`` of every chunk."""
        for start, count in self._chunks:
            yield start, count, self._part(start, count)

    def _part(self, start: int, count: int) -> Tensor:
        return self._data[start * self._block_bytes : (start + count) * self._block_bytes]


class Lane:
    """Where one thread's copies and transfers are enqueued."""

    def __init__(self, device: Any) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def use(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def after(self, fence: Any) -> None:
        """What follows here is ordered behind ``KvBlocks.fence``."""
        if self._stream is not None and fence is not None:
            self._stream.wait_event(fence)

    def finish(self) -> None:
        """Return when all that was enqueued is done."""
        if self._stream is not None:
            self._stream.synchronize()
