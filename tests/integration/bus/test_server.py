"""A nats-server of our own: it starts, keeps its port and data, and never outlives its owner."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus import keys, server
from bus.errors import NotConnected, ServerFailed
from bus.nats_bus import NatsBus
from bus.permissions import ROLES
from bus.server import BINARY_VARIABLE, NatsServer, find_binary, free_port
from bus.server_config import User, deployment_config, server_config
from tests.support.nats import until

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[NatsServer]:
    started = NatsServer(tmp_path / "nats")
    yield started
    await started.kill()


def gone(pid: int) -> bool:
    """Ended, and reaped by whoever is its parent now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def arguments_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def connected(url: str, **options: Any) -> NatsBus:
    bus = NatsBus(url, source="operator", epoch=1, **options)
    await bus.connect()
    return bus


async def test_it_takes_connections_when_start_returns(own: NatsServer) -> None:
    started_s = time.monotonic()
    url = await own.start()
    assert time.monotonic() - started_s < 5
    bus = await connected(url)
    assert bus.connected
    await bus.close()


async def test_it_keeps_its_port_and_its_data(own: NatsServer, tmp_path: Path) -> None:
    url = await own.start()
    ports = {own.port}
    for end in (own.kill, own.stop, own.kill):
        await end()
        assert own.pid is None
        assert await own.start() == url
        ports.add(own.port)
    assert await own.restart() == url
    assert len(ports) == 1
    assert (tmp_path / "nats" / "jetstream").is_dir()


async def test_only_its_owner_reads_the_configuration(own: NatsServer) -> None:
    await own.start()
    assert stat.S_IMODE(own.config_file.stat().st_mode) == 0o600
    assert "Server is ready" in own.log_file.read_text()


async def test_it_listens_on_loopback_only(own: NatsServer) -> None:
    await own.start()
    assert own.url == f"nats://127.0.0.1:{own.port}"
    assert f'listen: "127.0.0.1:{own.port}"' in own.config_file.read_text()


async def test_no_secret_stands_in_its_arguments_or_its_configuration(tmp_path: Path) -> None:
    public = keys.create_or_load(tmp_path / "g.nk")
    running = NatsServer(tmp_path / "nats", users=[("gateway", "gateway-0", public)])
    await running.start()
    try:
        seed = (tmp_path / "g.nk").read_text()
        assert seed not in arguments_of(running.pid) + running.config_file.read_text()
        assert public in running.config_file.read_text()
    finally:
        await running.kill()


async def test_a_port_that_is_taken_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    first = NatsServer(tmp_path / "one")
    await first.start()
    second = NatsServer(tmp_path / "two", port=first.port)
    try:
        with pytest.raises(ServerFailed, match="address already in use"):
            await second.start()
        assert second.pid is None
    finally:
        await first.kill()


async def test_another_binary_can_be_named_and_a_wrong_one_is_told(
    own: NatsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(BINARY_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ServerFailed, match=BINARY_VARIABLE):
        find_binary()
    script = tmp_path / "broken-server"
    script.write_text("#!/bin/sh\necho no license >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv(BINARY_VARIABLE, str(script))
    with pytest.raises(ServerFailed, match="ended with 3: no license"):
        await own.start()


async def test_one_that_ignores_sigterm_is_killed(
    own: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.1)
    await own.start()
    pid = own.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await own.stop()
    assert gone(pid)


async def test_a_killed_one_comes_back_on_its_port(own: NatsServer) -> None:
    bus = await connected(await own.start())
    first = own.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert await own.wait() == -signal.SIGKILL
    await own.start()
    await until(lambda: bus.counters["reconnects_total"] == 1, "the bus is back")
    assert own.pid not in {None, first}
    await bus.close()


async def test_a_new_key_is_taken_over_without_a_restart(tmp_path: Path) -> None:
    first: User = ("operator", "operator", keys.create_or_load(tmp_path / "a.nk"))
    running = NatsServer(tmp_path / "nats", users=[first])
    url = await running.start()
    try:
        pid = running.pid
        known = await connected(url, key_file=tmp_path / "a.nk")
        second: User = ("operator", "operator", keys.create_or_load(tmp_path / "b.nk"))
        with pytest.raises(NotConnected):
            await connected(url, key_file=tmp_path / "b.nk", connect_timeout_s=0.3)
        running.set_users([first, second])
        other = await connected(url, key_file=tmp_path / "b.nk")
        assert running.pid == pid
        assert known.counters["reconnects_total"] == 0
        await known.close()
        await other.close()
    finally:
        await running.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
async def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from bus.server import NatsServer\n"
        "async def main():\n"
        "    server = NatsServer(pathlib.Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "nats"), stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    line = await parent.stdout.readline()
    parent.kill()
    await parent.wait()
    await until(lambda: gone(int(line)), "the server is gone too")


def test_a_free_port_is_free() -> None:
    assert 1024 < free_port() < 65536


# The configuration for deployments.


def test_the_deployed_configuration_is_what_the_catalogue_says() -> None:
    kept = (ROOT / "deploy/nats/nats-server.conf").read_text()
    assert kept == deployment_config(), (
        "run: python -m bus.server_config >deploy/nats/nats-server.conf"
    )


async def test_the_deployed_configuration_works_in_a_real_server(tmp_path: Path) -> None:
    """With keys from the environment, and one key for every gateway."""
    environment = dict(os.environ)
    for role in ROLES:
        environment[f"SWITCHYARD_{role.upper()}_NKEY"] = keys.create_or_load(tmp_path / role)
    port = free_port()
    command = [str(find_binary()), "-c", str(ROOT / "deploy/nats/nats-server.conf")]
    environment["SWITCHYARD_NATS_STORE_DIR"] = str(tmp_path / "data")
    process = await asyncio.create_subprocess_exec(
        *command, "-p", str(port), env=environment, stderr=subprocess.DEVNULL
    )
    try:
        url = f"nats://127.0.0.1:{port}"
        for instance in ("gateway-0", "gateway-7"):
            bus = NatsBus(
                url,
                source=instance,
                epoch=1,
                key_file=tmp_path / "gateway",
                inbox_prefix="_INBOX_gateway",
            )
            await bus.connect()
            assert bus.connected
            await bus.close()
        with pytest.raises(NotConnected):
            await connected(url, connect_timeout_s=0.3)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize(
    "nkey", ["", "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY", "U1"]
)
def test_what_is_no_public_key_does_not_get_into_a_configuration(nkey: str) -> None:
    with pytest.raises(ValueError, match="not a public user nkey"):
        server_config([("gateway", "gateway-0", nkey)], listen="127.0.0.1:1", store_dir="/x")
