"""Listens to what vLLM publishes of its prefix cache, on a ZMQ socket between its processes.

Batches are numbered. A gap is filled from vLLM's own memory of batches; what that has forgotten
cannot be known, so the reader says that everything is gone and goes on from there.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio
from vllm.config import KVEventsConfig  # type: ignore[import-not-found]
from vllm.distributed.kv_events import (  # type: ignore[import-not-found]
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
)

from components.worker.vllm.page_names import PageNames, PagesChange

REPLAY_S: Final = 2.0
#: Batches that vLLM remembers.
BATCHES: Final = 10_000
END: Final = (-1).to_bytes(8, "big", signed=True)


class KvEvents:
    """The socket and its reader, for one vLLM."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="switchyard-kv-"))
        self._names = PageNames()
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._next = 0

    def config(self) -> Any:
        """What vLLM must be told at its start."""
        return KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=f"ipc://{self._folder}/events",
            replay_endpoint=f"ipc://{self._folder}/replay",
            buffer_steps=BATCHES,
            topic="kv",
        )

    def close(self) -> None:
        """Remove what it had on disk. Harmless twice."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def changes(self) -> AsyncIterator[PagesChange]:
        """Every change, in order, for ever."""
        context = zmq.asyncio.Context.instance()
        with context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, BATCHES)
            socket.subscribe(b"kv")
            socket.connect(f"ipc://{self._folder}/events")
            while True:
                _, number, body = await socket.recv_multipart()
                seq = int.from_bytes(number, "big")
                if seq > self._next:
                    async for change in self._missed(seq):
                        yield change
                if seq == self._next:
                    self._next += 1
                    for change in self._changes(body):
                        yield change

    async def _missed(self, until: int) -> AsyncIterator[PagesChange]:
        """What was said from the next batch to the one before ``until``."""
        try:
            async with asyncio.timeout(REPLAY_S):
                batches = await self._replayed(until)
        except TimeoutError:
            batches = []
        if [seq for seq, _ in batches] != list(range(self._next, until)):
            yield self._names.cleared()
        else:
            for _, body in batches:
                for change in self._changes(body):
                    yield change
        self._next = until

    async def _replayed(self, until: int) -> list[tuple[int, bytes]]:
        batches: list[tuple[int, bytes]] = []
        context = zmq.asyncio.Context.instance()
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(f"ipc://{self._folder}/replay")
            await socket.send_multipart([b"", self._next.to_bytes(8, "big")])
            while True:
                _, _, number, body = await socket.recv_multipart()
                if number == END:
                    return batches
                seq = int.from_bytes(number, "big")
                if seq < until:
                    batches.append((seq, body))

    def _changes(self, body: bytes) -> Iterator[PagesChange]:
        for event in self._decoder.decode(body).events:
            change = self._change(event)
            if change is not None:
                yield change

    def _change(self, event: Any) -> PagesChange | None:
        match event:
            case BlockStored():
                return self._names.stored(
                    event.block_hashes,
                    event.parent_block_hash,
                    event.token_ids,
                    event.block_size,
                    event.extra_keys,
                )
            case BlockRemoved():
                return self._names.removed(event.block_hashes)
            case AllBlocksCleared():
                return self._names.cleared()
            case _:
                return None
