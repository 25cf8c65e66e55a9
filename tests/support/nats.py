"""A real nats-server with the generated permissions, and buses that are connected to it.

    async def test_something(nats_server, nats_bus):
        gateway = await nats_bus("gateway", "gateway-0")
        ...
        await nats_server.kill()
        await nats_server.start()          # same port, same data

Where a Docker engine answers at once the server is testcontainers' NATS, else the packaged binary;
both offer the same. ``SWITCHYARD_TEST_NATS=packaged`` (or ``docker``) decides by hand.
``tests/conftest.py`` loads this plugin.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import nats
import pytest
from nats.aio.client import Client

from bus import keys
from bus.history import History
from bus.names import encode_name
from bus.nats_bus import NatsBus
from bus.permissions import inbox_prefix
from bus.provision import provision
from bus.server import NatsServer, _greeting, free_port
from bus.server_config import User, server_config

#: The nats-server of the container is the one that the lock file pins for everyone else.
IMAGE = "nats:2.15.1"
CHOICE_VARIABLE = "SWITCHYARD_TEST_NATS"
#: Of a machine whose cores others use too; nobody waits so long when all is well.
WAIT_S = 15.0

#: Who has a key from the start; others get one when a test asks for them.
INSTANCES = {
    "gateway": ("gateway-0", "gateway-1"),
    "scheduler": ("scheduler-0", "scheduler-1"),
    "router": ("router-0", "router-1"),
    "registry": ("registry-0",),
    "bridge": ("bridge-0",),
    "replay": ("replay-0",),
    "worker": ("prefill-0", "prefill-1", "decode-0", "decode-1", "aggregated-0", "aggregated-1"),
    "operator": ("operator",),
    "history": ("history",),
    "provisioner": ("provisioner",),
    "client": ("acme", "globex"),
}


async def until(condition: Callable[[], bool], what: str = "", deadline_s: float = WAIT_S) -> None:
    """Wait for ``condition``; fails with ``what`` after ``deadline_s``."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what or condition}"
        await asyncio.sleep(0.002)


async def stored(history: History, stream: str, last_seq: int) -> None:
    """Wait until ``stream`` holds ``last_seq``: the server stores a little after it has read."""
    async with asyncio.timeout(WAIT_S):
        while await history.last_seq(stream) < last_seq:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.005)


async def settled(client: Client, instance: str, component: str = "") -> None:
    """Return when the server has read all that a plain client published, and told what it refused.

    A message to its own inbox, because nats-py's ``flush`` sends its ping ahead of what waits.
    """
    address = f"{inbox_prefix(component, instance)}.settled"
    echo = await client.subscribe(address)
    await client.publish(address)
    await echo.next_msg(timeout=WAIT_S)
    await echo.unsubscribe()


class ServerUnderTest(Protocol):
    """What both kinds of server can do."""

    @property
    def url(self) -> str: ...
    async def start(self) -> str: ...
    async def stop(self) -> None: ...
    async def kill(self) -> None: ...
    async def freeze(self) -> None: ...
    async def thaw(self) -> None: ...
    def set_users(self, users: tuple[User, ...]) -> None: ...


class PackagedServer(NatsServer):
    """The packaged binary, which can also be frozen."""

    async def freeze(self) -> None:
        pid = self.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: _process_state(pid) == "T", "the server is stopped")

    async def thaw(self) -> None:
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)


def _process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


class DockerServer:
    """testcontainers' NATS with our configuration, on a fixed port of the loopback interface."""

    CONFIG = "/etc/switchyard.conf"

    def __init__(self, users: tuple[User, ...]) -> None:
        from testcontainers.community.nats import NatsContainer  # noqa: PLC0415  (only with Docker)

        self._port = free_port()
        self._container = NatsContainer(IMAGE).with_command(["-c", self.CONFIG])
        ports: Any = {4222: ("127.0.0.1", self._port)}  # fixed, so that a restart keeps it
        self._container.ports = ports
        self._container.with_copy_into_container(self._config(users), self.CONFIG)
        self._created = False

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def _config(self, users: tuple[User, ...]) -> bytes:
        return server_config(users, listen="0.0.0.0:4222", store_dir="/tmp/jetstream").encode()

    def _docker(self) -> Any:
        return self._container.get_wrapped_container()

    async def start(self) -> str:
        await asyncio.to_thread(self._docker().start if self._created else self._container.start)
        self._created = True
        async with asyncio.timeout(WAIT_S):
            greeting: dict[str, Any] = {}
            while not greeting.get("jetstream"):
                await asyncio.sleep(0.01)
                greeting = await _greeting("127.0.0.1", self._port)
        return self.url

    async def stop(self) -> None:
        await asyncio.to_thread(self._docker().stop, timeout=5)

    async def kill(self) -> None:
        await asyncio.to_thread(self._docker().kill)

    async def freeze(self) -> None:
        await asyncio.to_thread(self._docker().pause)

    async def thaw(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self._docker().unpause)

    def set_users(self, users: tuple[User, ...]) -> None:
        self._container.copy_into_container(self._config(users), self.CONFIG)
        self._docker().kill(signal="SIGHUP")

    def remove(self) -> None:
        if self._created:
            self._container.stop()


@cache
def docker_answers() -> bool:
    """Is there a Docker engine that answers within a second and has, or gets, the image?"""
    choice = os.environ.get(CHOICE_VARIABLE)
    if choice is not None:
        return choice == "docker"
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False
    import docker  # noqa: PLC0415  (only where an engine may be)

    try:
        docker.from_env(timeout=1).ping()
        engine = docker.from_env()
        if not engine.images.list(IMAGE):
            engine.images.pull(IMAGE)
        return True
    except (docker.errors.DockerException, OSError):
        return False


class KeyRing:
    """nkeys by instance, as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.users: dict[str, User] = {}
        for component, instances in INSTANCES.items():
            for instance in instances:
                self.add(component, instance)

    def add(self, component: str, instance: str) -> None:
        public = keys.create_or_load(self.file(instance))
        self.users[instance] = (component, instance, public)

    def file(self, instance: str) -> Path:
        return self._folder / f"{encode_name(instance)}.nk"


class NatsInTest:
    """The server of one test and all who are connected to it."""

    def __init__(self, server: ServerUnderTest, ring: KeyRing) -> None:
        self.server = server
        self._ring = ring
        self._buses: list[NatsBus] = []
        self._clients: list[Client] = []
        self._lives = 1_795_000_000_000

    @property
    def url(self) -> str:
        return self.server.url

    async def start(self) -> None:
        await self.server.start()

    async def kill(self) -> None:
        await self.server.kill()

    async def stop(self) -> None:
        await self.server.stop()

    async def freeze(self) -> None:
        await self.server.freeze()

    async def thaw(self) -> None:
        await self.server.thaw()

    async def provision(self) -> None:
        """Create streams and buckets."""
        await provision(self.url, self.key_file("provisioner", "provisioner"))

    def key_file(self, component: str, instance: str) -> Path:
        """The seed of ``instance``; the server knows it and what it may do."""
        if instance not in self._ring.users:
            self._ring.add(component, instance)
            self.server.set_users(tuple(self._ring.users.values()))
        assert self._ring.users[instance][0] == component, "another component has this name"
        return self._ring.file(instance)

    async def bus(self, component: str, instance: str, **options: Any) -> NatsBus:
        """A connected bus under the permissions of ``instance``; closed when the test ends."""
        self._lives += 1
        options = {
            "source": instance,
            "epoch": self._lives,
            "key_file": self.key_file(component, instance),
            **options,
        }
        bus = NatsBus(self.url, **options)
        self._buses.append(bus)
        await bus.connect()
        return bus

    async def client(self, component: str, instance: str, **options: Any) -> Client:
        """A plain nats-py client with the same key, for what the bus does not let through."""
        client = await nats.connect(
            self.url,
            nkeys_seed=str(self.key_file(component, instance)),
            inbox_prefix=inbox_prefix(component, instance),
            **options,
        )
        self._clients.append(client)
        return client

    async def close(self) -> None:
        await self.server.thaw()
        for bus in self._buses:
            await bus.close()
        for client in self._clients:
            await client.close()


@pytest.fixture(scope="session")
def nats_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing(tmp_path_factory.mktemp("keys"))


@asynccontextmanager
async def running(process: ServerUnderTest, ring: KeyRing) -> AsyncIterator[NatsInTest]:
    """Start ``process``; at the end close everyone's connection and end it."""
    in_test = NatsInTest(process, ring)
    await in_test.start()
    try:
        yield in_test
    finally:
        await in_test.close()
        await in_test.kill()


@pytest.fixture
def nats_process(nats_keys: KeyRing, tmp_path: Path) -> Iterator[ServerUnderTest]:
    """A server that was not started yet; costs nothing until it is."""
    users = tuple(nats_keys.users.values())
    if not docker_answers():
        yield PackagedServer(tmp_path / "nats", users=users)
        return
    docker_server = DockerServer(users)
    yield docker_server
    docker_server.remove()


@pytest.fixture
async def nats_server(
    nats_process: ServerUnderTest, nats_keys: KeyRing
) -> AsyncIterator[NatsInTest]:
    """A running nats-server of the test's own, empty, on a free port."""
    async with running(nats_process, nats_keys) as in_test:
        yield in_test


@pytest.fixture
def nats_bus(nats_server: NatsInTest) -> Callable[..., Awaitable[NatsBus]]:
    """``await nats_bus("gateway", "gateway-0")``: a connected bus with that one's permissions."""
    return nats_server.bus
