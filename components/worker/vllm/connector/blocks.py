"""Blocks of the KV cache as contiguous bytes, and back.

vLLM gives one tensor per layer whose first dimension is blocks (``[B, H, N, C]``; the strides
differ by attention backend and device). Bytes of a chunk of n blocks are

    layer 0: n blocks, layer 1: n blocks, ...

each block in logical order, whatever its strides: the two ends only have to agree on the shapes and
types of a block (``connector.layout_of``).
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector.link import Tensor


class KvBlocks:
    """All layers of one rank's KV cache. ``lane`` must be entered by the thread that copies."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        if not layers:
            raise ValueError("no KV cache")
        self._layers = tuple(layers)
        if len({layer.device for layer in layers}) != 1:
            raise ValueError("the layers' KV caches are on different devices")
        self.device = layers[0].device
        self.count = min(layer.shape[0] for layer in layers)
        self._sizes = [math.prod(kv.shape[1:]) * kv.element_size() for kv in layers]
        self.block_bytes: int = sum(self._sizes)

    def buffer(self, blocks: int) -> Tensor:
        """Room for a chunk of so many blocks."""
        return torch.empty(blocks * self.block_bytes, dtype=torch.uint8, device=self.device)

    def gather(self, ids: Sequence[int], out: Tensor) -> None:
        """Copy blocks ``ids`` into ``out`` (exactly their bytes)."""
        index = self._index(ids)
        for kv, part in self._parts(out, len(ids)):
            torch.index_select(kv, 0, index, out=part)

    def scatter(self, ids: Sequence[int], data: Tensor) -> None:
        """Copy ``data``, as ``gather`` made it, into blocks ``ids``."""
        index = self._index(ids)
        for kv, part in self._parts(data, len(ids)):
            kv.index_copy_(0, index, part)

    def _index(self, ids: Sequence[int]) -> Tensor:
        assert 0 <= min(ids) <= max(ids) < self.count, "blocks that the cache does not have"
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _parts(self, data: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
        assert data.numel() == blocks * self.block_bytes
        parts = []
        start = 0
        for kv, size in zip(self._layers, self._sizes, strict=True):
            end = start + size * blocks
            parts.append((kv, data[start:end].view(kv.dtype).view(blocks, *kv.shape[1:])))
            start = end
        return parts

    # On a GPU copies run on a stream of their own, beside the model's.

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
