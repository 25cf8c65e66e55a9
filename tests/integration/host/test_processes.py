"""Real processes on a real nats-server: how they start, end, and what they leave."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from bus import subjects
from bus.nats_bus import NatsBus
from bus.server import free_port
from schemas.fleet import HeartbeatSent, ShowComponent, ShowComponentReply
from tests.support.nats import NatsInTest, until

ROOT = Path(__file__).parents[3]
SCRIPTS = ("-m", "tests.integration.host.scripts")
REGISTRY = ("-c", "import sys; from components.registry.main import main; sys.exit(main({}))")


class Yard:
    """Starts processes and hears their heartbeats."""

    def __init__(self) -> None:
        self.heard: list[HeartbeatSent] = []
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}
        self.environ["SWITCHYARD_HOST_HEARTBEAT_MS"] = "50"
        self._processes: list[Process] = []

    async def start(self, *command: str, **environ: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            cwd=ROOT,
            env={**self.environ, **environ},
            stdout=DEVNULL,
            stderr=PIPE,
        )
        self._processes.append(process)
        return process

    async def until(self, state: str, epoch_after: int = 0) -> HeartbeatSent:
        def there() -> bool:
            return bool(self.heard) and (
                self.heard[-1].state == state and self.heard[-1].process_epoch > epoch_after
            )

        await until(there, f"a heartbeat says {state}", deadline_s=15)
        return self.heard[-1]

    async def close(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def ended(process: Process, within_s: float = 15) -> tuple[int, str]:
    async with asyncio.timeout(within_s):
        _, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stderr.decode()


@pytest.fixture
async def lonely() -> AsyncIterator[Yard]:
    yard = Yard()
    yield yard
    await yard.close()


@pytest.fixture
async def yard(
    lonely: Yard, nats_server: NatsInTest, nats_bus: Callable[..., Awaitable[NatsBus]]
) -> Yard:
    listener = await nats_bus("gateway", "gateway-1")
    await listener.subscribe(
        subjects.heartbeat_sent(subjects.ANY, subjects.ANY),
        HeartbeatSent,
        lambda received: lonely.heard.append(received.message),
    )
    lonely.environ["NATS_URL"] = nats_server.url
    return lonely


def key(nats_server: NatsInTest, component: str) -> dict[str, str]:
    return {"SWITCHYARD_HOST_NATS_KEY_FILE": str(nats_server.key_file(component, f"{component}-0"))}


async def test_sigterm_drains_says_goodbye_and_ends_with_0(yard: Yard, nats_server: NatsInTest):
    process = await yard.start(*REGISTRY, **key(nats_server, "registry"))
    heartbeat = await yard.until("ready")
    assert (heartbeat.instance, heartbeat.pid) == ("registry-0", process.pid)
    process.send_signal(signal.SIGTERM)
    code, stderr = await ended(process)
    assert code == 0, stderr
    await yard.until("stopped")
    states = list(dict.fromkeys(h.state for h in yard.heard))
    assert states == ["starting", "ready", "draining", "stopped"]


async def test_it_outlives_the_server_and_can_be_asked_when_that_is_back(
    yard: Yard, nats_server: NatsInTest, nats_bus: Callable[..., Awaitable[NatsBus]]
):
    process = await yard.start(*REGISTRY, **key(nats_server, "registry"))
    first = await yard.until("ready")
    await nats_server.kill()
    await nats_server.start()
    heard = len(yard.heard)
    await until(lambda: len(yard.heard) > heard, "heartbeats again", deadline_s=15)
    operator = await nats_bus("operator", "operator")
    reply = await operator.ask(
        subjects.show_component(subjects.EVERYONE), ShowComponent(), ShowComponentReply, timeout_s=5
    )
    assert reply.heartbeat.process_epoch == first.process_epoch
    assert reply.counters["bus_reconnects_total"] == 1
    assert process.returncode is None


async def test_a_second_signal_ends_it_at_once(yard: Yard, nats_server: NatsInTest):
    environ = {**key(nats_server, "gateway"), "SWITCHYARD_HOST_DRAIN_S": "600"}
    process = await yard.start(*SCRIPTS, "stubborn", **environ)
    await yard.until("ready")
    process.send_signal(signal.SIGINT)
    # Ctrl-C also comes by way of the supervisor: the same wish, not a second one.
    process.send_signal(signal.SIGTERM)
    await yard.until("draining")
    heard = len(yard.heard)
    await until(lambda: len(yard.heard) > heard + 10, "it goes on draining for half a second")
    process.send_signal(signal.SIGTERM)
    code, _ = await ended(process, within_s=2)
    assert code == 128 + signal.SIGTERM


async def test_a_drain_ends_at_its_deadline(yard: Yard, nats_server: NatsInTest):
    environ = {**key(nats_server, "gateway"), "SWITCHYARD_HOST_DRAIN_S": "0.3"}
    process = await yard.start(*SCRIPTS, "stubborn", **environ)
    await yard.until("ready")
    process.send_signal(signal.SIGTERM)
    code, _ = await ended(process, within_s=5)
    assert code == 0


async def test_a_stop_asked_for_before_the_loop_started_is_not_lost(lonely: Yard):
    environ = {"SWITCHYARD_HOST_NATS_URL": f"nats://127.0.0.1:{free_port()}"}
    process = await lonely.start(*SCRIPTS, "told_before_the_loop", **environ)
    code, stderr = await ended(process)
    assert code == 0, stderr


async def test_a_fault_is_logged_with_its_traceback_and_ends_with_70(
    yard: Yard, nats_server: NatsInTest
):
    environ = {**key(nats_server, "gateway"), "SWITCHYARD_HOST_LOG_FORMAT": "json"}
    process = await yard.start(*SCRIPTS, "stubborn", "fault", **environ)
    code, stderr = await ended(process)
    assert code == 70
    lines = [json.loads(line) for line in stderr.splitlines()]
    (fault,) = [line for line in lines if line["level"] == "ERROR"]
    assert fault["logger"] == "switchyard.gateway"
    assert "ValueError: planted" in fault["traceback"]
    await yard.until("stopped")


async def test_an_unknown_setting_ends_it_with_78_and_is_named(lonely: Yard):
    process = await lonely.start(*REGISTRY, SWITCHYARD_REGISTRY_TIK_MS="5")
    code, stderr = await ended(process)
    assert code == 78
    assert stderr.startswith("switchyard registry: unknown settings for registry: 'tik_ms'")
    assert "Allowed: access_dir, " in stderr
    assert "tick_ms" in stderr
    assert len(stderr.splitlines()) == 1


async def test_no_server_ends_it_with_69_after_the_set_time(lonely: Yard):
    environ = {
        "SWITCHYARD_HOST_NATS_URL": f"nats://127.0.0.1:{free_port()}",
        "SWITCHYARD_HOST_CONNECT_TIMEOUT_S": "0.5",
    }
    process = await lonely.start(*REGISTRY, **environ)
    code, stderr = await ended(process)
    assert code == 69
    assert environ["SWITCHYARD_HOST_NATS_URL"] in stderr
    assert "Traceback" not in stderr


async def test_a_killed_parent_leaves_no_child(yard: Yard, nats_server: NatsInTest, tmp_path: Path):
    pid_file = tmp_path / "pid"
    parent = await yard.start(*SCRIPTS, "parent", str(pid_file), **key(nats_server, "gateway"))
    heartbeat = await yard.until("ready")
    child = psutil.Process(heartbeat.pid)
    assert int(pid_file.read_text()) == child.pid
    parent.kill()
    try:
        await until(lambda: _gone(child), "the child is gone")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_child_whose_parent_is_gone_already_does_not_start(lonely: Yard):
    environ = {"SWITCHYARD_HOST_DIE_WITH_PARENT": "1", "SWITCHYARD_HOST_PARENT_PID": "1"}
    process = await lonely.start(*REGISTRY, **environ)
    code, stderr = await ended(process)
    assert code == 0
    assert "the parent is gone already" in stderr


async def test_spans_go_to_standard_error_when_asked_for(lonely: Yard):
    process = await lonely.start(*SCRIPTS, "spans", "console", "2")
    code, stderr = await ended(process)
    assert code == 0
    assert '"a request"' in stderr
    assert '"service.name": "switchyard.gateway"' in stderr
    assert '"service.instance.id": "gateway-0"' in stderr


async def test_spans_go_to_a_collector_by_otlp(lonely: Yard):
    posted: list[bytes] = []

    async def collector(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().splitlines()
            if line.startswith(b"content-length")
        )
        posted.append(head + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(collector, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        process = await lonely.start(*SCRIPTS, "spans", f"http://127.0.0.1:{port}", "5")
        code, stderr = await ended(process)
    assert code == 0, stderr
    assert posted[0].startswith(b"POST /v1/traces ")


async def test_a_collector_that_hangs_does_not_hold_up_the_exit(lonely: Yard):
    over = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        started_s = time.monotonic()
        process = await lonely.start(*SCRIPTS, "spans", f"http://127.0.0.1:{port}", "0.3")
        code, stderr = await ended(process)
        over.set()
    assert code == 0
    assert time.monotonic() - started_s < 8
    assert "the last spans are lost" in stderr
