"""One launch for the blocks of many layers, where there are an NVIDIA GPU and Triton.

Layer by layer the host needs longer to ask for the copies than a GPU for making them: with 32
layers and chunks of 16 MiB, ten times. A chunk's bytes are the same either way (``blocks.py``).

Layers alike in shape, type and strides are one group and one launch. Blocks are copied in words of
eight bytes; a layer whose blocks are not made of such words is copied in the plain way.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch  # type: ignore[import-not-found]
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from components.worker.vllm.connector.link import Tensor

_WORD: Final = 8
_TILE: Final = 1024
_INNER_DIMENSIONS: Final = 3


# Not specialised: compiled once, when the cache is registered, and never in a transfer.
@triton.jit(do_not_specialize=["blocks", "skip", "by_block", "by_row", "by_line"])  # type: ignore[untyped-decorator]
def _copy_blocks(  # type: ignore[no-untyped-def]
    layers, starts, ids, chunk, blocks, skip, by_block, by_row, by_line,
    rows: tl.constexpr, lines: tl.constexpr, words: tl.constexpr,
    tile: tl.constexpr, out: tl.constexpr,
):  # fmt: skip
    """Words of one tile of one block of one layer, to the chunk (``out``) or from it."""
    number = tl.program_id(0)
    layer = tl.program_id(2)
    word = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = word < rows * lines * words
    cache = tl.load(layers + layer).to(tl.pointer_type(tl.int64))
    block = tl.load(ids + number)
    line = word // words
    there = block * by_block + line // lines * by_row + line % lines * by_line + word % words
    here = tl.load(starts + layer) * blocks + (skip + number).to(tl.int64) * (rows * lines * words)
    if out:
        tl.store(chunk + here + word, tl.load(cache + there, mask=inside), mask=inside)
    else:
        tl.store(cache + there, tl.load(chunk + here + word, mask=inside), mask=inside)


class LayerGroup:
    """Layers alike; ``starts`` are the bytes of one block that lie before each in a chunk."""

    def __init__(self, layers: Sequence[Tensor], starts: Sequence[int]) -> None:
        first = layers[0]
        device = first.device
        size = first.element_size()
        shape = (1,) * (_INNER_DIMENSIONS + 1 - first.dim()) + tuple(first.shape[1:])
        strides = (0,) * (_INNER_DIMENSIONS + 1 - first.dim()) + tuple(first.stride()[1:])
        self._rows, self._lines, last = shape
        self._words = last * size // _WORD
        steps = (first.stride(0), strides[0], strides[1])
        self._by_block, self._by_row, self._by_line = (step * size // _WORD for step in steps)
        self._tiles = triton.cdiv(self._rows * self._lines * self._words, _TILE)
        self._layers = torch.tensor([kv.data_ptr() for kv in layers], device=device)
        self._starts = torch.tensor([start // _WORD for start in starts], device=device)
        self._device = device

    def copy(self, index: Tensor, chunk: Tensor, skip: int, *, out: bool) -> None:
        """Blocks ``index`` to ``chunk``, or the other way, but for the chunk's first ``skip``."""
        words = chunk.view(torch.int64)
        blocks = skip + len(index)
        grid = (len(index), self._tiles, len(self._layers))
        with torch.cuda.device(self._device):
            _copy_blocks[grid](
                self._layers, self._starts, index, words, blocks, skip,
                self._by_block, self._by_row, self._by_line,
                rows=self._rows, lines=self._lines, words=self._words, tile=_TILE, out=out,
            )  # fmt: skip


def is_in_words(layer: Tensor, start: int) -> bool:
    """Can this layer be copied in words? ``start`` as in ``LayerGroup``."""
    inner = layer.dim() - 1
    if not 1 <= inner <= _INNER_DIMENSIONS or layer.stride(-1) != 1 or start % _WORD:
        return False
    steps = [*layer.stride()[:-1], layer.shape[-1]]
    aligned = all(step * layer.element_size() % _WORD == 0 for step in steps)
    return aligned and layer.data_ptr() % _WORD == 0


def group_key(layer: Tensor) -> Any:
    """Layers with equal keys are alike."""
    return (layer.dtype, tuple(layer.shape[1:]), layer.stride())
