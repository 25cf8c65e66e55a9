"""A thread with a queue of jobs and at most one link to its peer: what pulling and serving share.

A serving thread and a pulling thread speak so over their link, once the pull is accepted:

    P: head and first chunk, more chunks ...   D: receipt (a head)

The head says whose bytes follow, so two ends that are out of step notice before a byte is used.
A receipt frees P's blocks.
"""

import itertools
import queue
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch  # type: ignore[import-not-found]
import xxhash

from components.worker.vllm.connector.link import Link, LinkFailed, Tensor

if TYPE_CHECKING:
    from components.worker.vllm.connector.moving import RankMover

#: Magic, state, blocks, and a digest of the transfer's name.
_HEAD: Final = struct.Struct("<4q")
_MAGIC: Final = 0x53574B56
HERE: Final = 1
GOT: Final = 3


@dataclass(frozen=True, slots=True)
class Chunk:
    """Blocks that cross the link at once; ``data`` is theirs, ``message`` what is sent."""

    blocks: Sequence[int]
    data: Tensor
    message: Tensor


class LinkThread:
    """Jobs are done in the order of their ``urgency`` (low first), then of their coming."""

    def __init__(self, mover: "RankMover", peer: str, what: str) -> None:
        self._mover = mover
        self._peer = peer
        self._link: Link | None = None
        self._link_name = ""
        self._lane = mover.kv.lane()
        self._staging: list[Tensor] = []
        self._numbers = itertools.count()
        self._jobs: queue.PriorityQueue[tuple[int, int, Any]] = queue.PriorityQueue()
        self._thread = threading.Thread(
            target=self._run, name=f"{mover.name} {what} {peer}", daemon=True
        )
        self._thread.start()

    def put(self, job: Any, urgency: int = 0) -> None:
        self._jobs.put((urgency, next(self._numbers), job))

    def end(self) -> None:
        """After the job that it is at."""
        self.put(None, urgency=-1)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    @property
    def has_jobs(self) -> bool:
        return not self._jobs.empty()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        with self._lane.use():
            while True:
                try:
                    _, _, job = self._jobs.get(timeout=self._mover.config.link_idle_ms / 1e3)
                except queue.Empty:
                    # First the link, which whoever uses it next will find closed; then the thread.
                    if self._link_name:
                        self._drop()
                    elif self._mover.retire(self):
                        break
                    continue
                if job is None:
                    break
                self._work(job)
        self._drop()

    def _work(self, job: Any) -> None:
        raise NotImplementedError

    def _drop(self) -> None:
        """This end of the link is of no more use; nor are buffers that it may still write to."""
        name, self._link, self._link_name = self._link_name, None, ""
        self._staging = []
        if name:
            self._mover.drop_link(name)

    def _chunks(self, blocks: Sequence[int], chunk_blocks: int) -> list[Chunk]:
        """The blocks in chunks, which take turns in two buffers. The first has room for a head."""
        size = self._mover.kv.block_bytes
        buffers = self._buffers(_HEAD.size + min(len(blocks), chunk_blocks) * size)
        chunks = []
        for number, start in enumerate(range(0, len(blocks), chunk_blocks)):
            part = blocks[start : start + chunk_blocks]
            whole = buffers[number % 2][: _HEAD.size + len(part) * size]
            data = whole[_HEAD.size :]
            chunks.append(Chunk(part, data, data if number else whole))
        return chunks

    def _buffers(self, size: int) -> list[Tensor]:
        """Two of at least so many bytes; kept for the next time."""
        if not self._staging or self._staging[0].numel() < size:
            self._staging = [self._mover.kv.bytes(size) for _ in range(2)]
        return self._staging

    def _head(self, state: int, blocks: int, transfer_id: str) -> Tensor:
        words = _HEAD.pack(_MAGIC, state, blocks, _digest(transfer_id))
        return torch.frombuffer(bytearray(words), dtype=torch.uint8)

    def _write_head(self, message: Tensor, state: int, blocks: int, transfer_id: str) -> None:
        message[: _HEAD.size].copy_(self._head(state, blocks, transfer_id))

    def _check_head(self, message: Tensor, state: int, blocks: int, transfer_id: str) -> None:
        """Raises ``LinkFailed`` when it speaks of something else."""
        head = bytes(message[: _HEAD.size].cpu().numpy())
        if _HEAD.unpack(head) != (_MAGIC, state, blocks, _digest(transfer_id)):
            raise LinkFailed(f"link {self._link_name}: out of step")


def _digest(transfer_id: str) -> int:
    """63 bits that tell transfers apart."""
    return xxhash.xxh3_64_intdigest(transfer_id.encode()) >> 1
