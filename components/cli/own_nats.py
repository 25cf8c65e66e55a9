"""The bus of an `up`: a nats-server of its own, or a cluster that was there before."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bus.errors import BusError
from bus.provision import provision
from bus.server import NatsServer
from bus.streams import BUCKETS, Bucket, Limits, Stream, limited
from components.cli import keyring
from components.cli.errors import CommandFailed
from components.cli.progress import Progress
from components.cli.restarts import Restarts
from components.cli.rundir import RunningProcess
from components.cli.supervisor import ended

NAME: Final = "nats-server"


class OwnNats:
    """A server on loopback that is kept running; each instance has a key and its permissions."""

    def __init__(
        self,
        data_dir: Path,
        keys_dir: Path,
        instances: Iterable[tuple[str, str]],
        prefix: str,
        progress: Progress,
        limits: Mapping[str, Limits] | None = None,
    ) -> None:
        """``limits`` of streams, where they differ from their defaults."""
        users = keyring.create(keys_dir, instances)
        self._data_dir = data_dir
        self._server = NatsServer(data_dir, users=users, prefix=prefix)
        self._keys_dir = keys_dir
        self._prefix = prefix
        self._progress = progress
        self._limits = limits

    @property
    def process(self) -> RunningProcess:
        return RunningProcess(NAME, self._server.pid, str(self._server.log_file))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The URL of the server while it is kept running, streams in it.

        Raises ``CommandFailed`` when it does not start.
        """
        self._progress.step(f"starting {NAME}")
        keeping = None
        try:
            await self._start()
            keeping = asyncio.create_task(self._keep())
            yield self._server.url
        except BusError as error:
            raise CommandFailed(f"{NAME} does not start: {error}") from error
        finally:
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
            await self._server.stop()

    async def mend(self, why: str) -> None:
        """End a server that takes messages and stores none; ``_keep`` starts it again.

        After a full disk it stays so, space or no space, until it is started anew (2.15.1).
        """
        self._progress.say(f"{NAME} does not store ({why}); it is started anew")
        await self._server.stop()

    @property
    def free_bytes(self) -> int:
        """Space where it stores."""
        return shutil.disk_usage(self._data_dir).free

    async def _start(self) -> None:
        url = await self._server.start()
        # At every start: streams in memory end with the server.
        await create_streams(url, self._keys_dir, self._prefix, self._limits)

    async def _keep(self) -> None:
        """Start it again, on the same port, whenever it ends."""
        restarts = Restarts()
        while True:
            restarts.on_start(time.monotonic())
            how = ended(await self._server.wait())
            while True:
                restart = restarts.on_exit(time.monotonic())
                if restart.is_news:
                    self._progress.say(f"{NAME} {how}; started again on the same port")
                await asyncio.sleep(restart.after_s)
                try:
                    await self._start()
                    break
                except (BusError, CommandFailed) as error:
                    how = f"did not start ({error})"
                    await self._server.kill()


async def create_streams(
    url: str,
    keys_dir: Path | None,
    prefix: str,
    limits: Mapping[str, Limits] | None = None,
    replicas: int = 1,
) -> None:
    """What the bus shall keep, as much of it as it shall; raises ``CommandFailed``."""
    key_file = keyring.find(keys_dir, keyring.PROVISIONER, keyring.PROVISIONER)
    try:
        wanted: list[Stream | Bucket] = [*limited(limits or {}), *BUCKETS]
        await provision(url, key_file, prefix=prefix, replicas=replicas, wanted=wanted)
    except BusError as error:
        raise CommandFailed(f"no streams at {url}: {error}") from error
