"""Sends the requests of a workload at their times, or so many at a time, and waits for all."""

import asyncio
import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from components.bench.client import Connection, Exchange, clock_s
from components.bench.prompts import Prompts
from components.bench.records import Record
from components.bench.target import CONNECT_TIMEOUT_S, Api, Target, request_bytes
from components.domain.traces import Arrival


@dataclass(frozen=True, slots=True)
class Load:
    """A run: what is sent, how, and within which bounds.

    ``concurrency`` None: open loop, every arrival at its time however many are under way.
    """

    target: Target
    model: str
    api: Api
    arrivals: Sequence[Arrival]
    prompts: Prompts
    concurrency: int | None = None
    connections_max: int = 1024
    request_timeout_s: float = 600.0
    run_timeout_s: float = 3600.0


@dataclass(slots=True)
class Progress:
    """How far the run is; read by whoever draws the bar."""

    total: int
    sent: int = 0
    ended: int = 0
    failed: int = 0


@dataclass(slots=True)
class Outcome:
    """What a run left: a record per request, and what the generator itself cost."""

    records: list[Record]
    generator: dict[str, object] = field(default_factory=dict)


class Pool:
    """Connections to one target: the one used last is next, and new ones are made on demand."""

    def __init__(self, target: Target, connections_max: int) -> None:
        self._target = target
        self._idle: list[Connection] = []
        self._room = asyncio.Semaphore(connections_max)
        self.opened = 0

    async def take(self) -> Connection:
        """A connection of one's own until ``give``; raises ``OSError`` or ``TimeoutError``."""
        await self._room.acquire()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        try:
            return await self._open()
        except BaseException:
            self._room.release()
            raise

    def give(self, connection: Connection) -> None:
        """Back into the pool; a connection that is no longer usable is closed."""
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        self._room.release()

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                Connection, self._target.host, self._target.port
            )
        self.opened += 1
        return connection


class Generator:
    """Runs one load. Use once."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._pool = Pool(load.target, load.connections_max)
        self._start_s = 0.0
        self.progress = Progress(len(load.arrivals))
        self.records: list[Record] = []

    async def run(self) -> Outcome:
        """Send everything and return when all ended, each by its timeout, all by the run's."""
        gc.collect()
        gc.freeze()
        cpu_s = time.process_time()
        self._start_s = clock_s()
        unsent = 0
        paced = self._open_loop if self._load.concurrency is None else self._closed_loop
        try:
            async with asyncio.timeout(self._load.run_timeout_s):
                await paced()
        except TimeoutError:
            unsent = len(self._load.arrivals) - len(self.records)
        finally:
            self._pool.close()
            gc.unfreeze()
        return Outcome(
            self.records,
            {
                "cpu_s": round(time.process_time() - cpu_s, 3),
                "rss_max_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "connections": self._pool.opened,
                "unsent": unsent,
            },
        )

    async def _open_loop(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for index, arrival in enumerate(self._load.arrivals):
                wait_s = self._start_s + arrival.at_s - clock_s()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                tasks.create_task(self._one(index, arrival, arrival.at_s))

    async def _closed_loop(self) -> None:
        waiting = iter(enumerate(self._load.arrivals))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._load.concurrency or 1):
                tasks.create_task(self._one_after_the_other(waiting))

    async def _one_after_the_other(self, waiting: Iterator[tuple[int, Arrival]]) -> None:
        for index, arrival in waiting:
            await self._one(index, arrival, clock_s() - self._start_s)

    async def _one(self, index: int, arrival: Arrival, arrival_s: float) -> None:
        record = Record(index, arrival_s, arrival.prompt_tokens, arrival.output_tokens)
        self.records.append(record)
        self.progress.sent += 1
        try:
            async with asyncio.timeout(self._load.request_timeout_s):
                await self._exchange(record, self._request(index, arrival))
        except TimeoutError:
            record.error = record.error or "timeout"
        except asyncio.CancelledError:
            record.error = record.error or "run_timeout"
            raise
        except OSError as error:
            record.error, record.error_text = "cannot_connect", str(error)[:300]
        self.progress.ended += 1
        self.progress.failed += not record.ok

    async def _exchange(self, record: Record, request: bytes) -> None:
        """Send and wait. A kept connection that the server had closed meanwhile is replaced."""
        while True:
            connection = await self._pool.take()
            exchange = Exchange(record, self._start_s)
            try:
                connection.send(request, exchange)
                await exchange.ended
            except BaseException:
                connection.close()
                raise
            finally:
                self._pool.give(connection)
            stale = connection.exchanges > 1 and not exchange.answered
            if record.error != "connection_lost" or not stale:
                return
            record.error, record.done_s = None, None

    def _request(self, index: int, arrival: Arrival) -> bytes:
        load = self._load
        fields = load.prompts.fields(index, arrival.prompt_tokens)
        return request_bytes(load.target, load.api, load.model, fields, arrival.output_tokens)


def run(load: Load, watch: Callable[[Progress], None], every_s: float = 0.2) -> Outcome:
    """Run a load on a loop of its own; ``watch`` sees the progress now and then."""
    import uvloop  # noqa: PLC0415

    async def watched() -> Outcome:
        generator = Generator(load)
        ticking = asyncio.create_task(_tick(generator.progress, watch, every_s))
        try:
            return await generator.run()
        finally:
            ticking.cancel()
            watch(generator.progress)

    return uvloop.run(watched())


async def _tick(progress: Progress, watch: Callable[[Progress], None], every_s: float) -> None:
    while True:
        watch(progress)
        await asyncio.sleep(every_s)
