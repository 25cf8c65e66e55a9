"""Work that would hold up the loop (tokenising, building a tokenizer), beside it, and bounded."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from components.gateway.errors import overloaded

T = TypeVar("T")


class Pool:
    """A few threads; at most ``queue_max`` calls run or wait, further ones are refused (503)."""

    def __init__(self, threads: int, queue_max: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._queue_max = queue_max
        self.pending = 0

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises; raises ``ApiError`` when too many wait."""
        if self.pending >= self._queue_max:
            raise overloaded("many prompts are being prepared")
        self.pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self.pending -= 1

    def close(self) -> None:
        """Start nothing more; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
