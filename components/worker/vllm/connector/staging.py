"""What is pulled into host memory because its request has no blocks yet. Pure, as ``core``.

How to think about it. D is full: its requests wait in vLLM's queue, and meanwhile P's blocks stay
pinned for them and P's leases run. So their KV comes into host memory, P is released as after any
pull, and when vLLM finds blocks the pull is served from here.

    waiting -> queued -> running -> whole -> (gone)

vLLM knows nothing of this: nothing here is ever named. An entry that fails, or finds no room, is
as if it had never been; its request pulls from P once it has blocks. ``waiting`` is for room: all
that is not waiting counts against the limit, and who came first is first. What does not fit at all
is not taken.

One thread runs the stages and pulls of one holder, one after the other. So when the pull of a
request comes up, its stage is whole, or was never begun, or is gone.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from components.worker.vllm.connector.config import ConnectorConfig
from components.worker.vllm.connector.orders import (
    BeginStage,
    ForgetStaged,
    PullOrder,
    StagesOutcome,
)


@dataclass(slots=True)
class _Stage:
    order: PullOrder
    bytes: int
    phase: Literal["waiting", "queued", "running", "whole"] = "waiting"
    dropped: bool = False


class Stages:
    """By request; ``block_bytes`` is one block of all layers."""

    def __init__(self, config: ConnectorConfig, block_bytes: int) -> None:
        self._bytes_max = config.host_staging_bytes
        self._entries_max = config.transfers_max
        self._block_bytes = block_bytes
        self._entries: OrderedDict[str, _Stage] = OrderedDict()
        self._waiting: OrderedDict[str, _Stage] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def order(self, order: PullOrder) -> list[StagesOutcome]:
        """The scheduler has no blocks for this request."""
        size = len(order.blocks) * self._block_bytes
        assert order.request_id not in self._entries, "ordered twice"
        if size > self._bytes_max or len(self._entries) >= self._entries_max:
            return []
        entry = _Stage(order, size)
        self._entries[order.request_id] = self._waiting[order.request_id] = entry
        return self._admit()

    def begin(self, request_id: str) -> bool:
        """A thread takes it up; False when it is not wanted any more."""
        entry = self._entries.get(request_id)
        if entry is None or entry.phase != "queued":
            return False
        entry.phase = "running"
        return True

    def is_wanted(self, request_id: str) -> bool:
        """May the thread that runs it try again?"""
        return not self._entries[request_id].dropped

    def on_whole(self, request_id: str) -> list[StagesOutcome]:
        """All of it is in host memory, which the thread has handed over."""
        entry = self._entries[request_id]
        entry.phase = "whole"
        return self._end(entry) if entry.dropped else []

    def on_failed(self, request_id: str) -> list[StagesOutcome]:
        """It could not be pulled; the thread keeps nothing."""
        return self._end(self._entries[request_id])

    def on_blocks(self, request_id: str) -> list[StagesOutcome]:
        """The request has blocks: what was not begun is pulled straight into them."""
        entry = self._entries.get(request_id)
        if entry is None or entry.phase in {"running", "whole"}:
            return []
        return self._end(entry)

    def is_whole(self, request_id: str) -> bool:
        """Can its pull be served from host memory?"""
        entry = self._entries.get(request_id)
        return entry is not None and entry.phase == "whole"

    def drop(self, request_id: str) -> list[StagesOutcome]:
        """The request has all it wanted, or wants nothing any more."""
        entry = self._entries.get(request_id)
        if entry is None:
            return []
        if entry.phase != "running":
            return self._end(entry)
        entry.dropped = True  # the memory is its thread's until it is back
        return []

    def _end(self, entry: _Stage) -> list[StagesOutcome]:
        """The only way out of the table."""
        request_id = entry.order.request_id
        del self._entries[request_id]
        if self._waiting.pop(request_id, None) is not None:
            return []
        self.bytes -= entry.bytes
        forget: list[StagesOutcome] = [ForgetStaged(request_id)] if entry.phase == "whole" else []
        return [*forget, *self._admit()]

    def _admit(self) -> list[StagesOutcome]:
        """Whoever has waited longest, as long as there is room for him."""
        admitted: list[StagesOutcome] = []
        while self._waiting:
            request_id, entry = next(iter(self._waiting.items()))
            if self.bytes + entry.bytes > self._bytes_max:
                break
            del self._waiting[request_id]
            entry.phase = "queued"
            self.bytes += entry.bytes
            admitted.append(BeginStage(entry.order))
        return admitted
