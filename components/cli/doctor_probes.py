"""Looks at this machine and at a yard for the doctor. Nothing here judges."""

import asyncio
import importlib
import json
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

from components.cli import keyring, probe
from components.cli.doctor_checks import EngineFact, PortFact, YardFact
from components.cli.doctor_engine import START, installed
from components.cli.errors import CommandFailed
from components.cli.found import Found
from components.cli.ports import FLAGS, choose

#: What `up` and its processes import, by the names under which they do.
MODULES: Final = (
    "fastapi", "httptools", "httpx", "jinja2", "msgpack", "msgspec", "nats", "nkeys",
    "opentelemetry.sdk", "orjson", "psutil", "pydantic", "rich", "tokenizers", "uvicorn", "uvloop",
    "xxhash",
)  # fmt: skip
COMMAND_S: Final = 10.0
ENGINE_S: Final = 120.0
ANSWER_S: Final = 1.0
DATAGRAM_S: Final = 3.0
DATAGRAM_POLL_S: Final = 0.05
ENGINE_ID: Final = "switchyard-doctor"
RMEM_MAX: Final = Path("/proc/sys/net/core/rmem_max")


def missing_modules() -> dict[str, str]:
    missing = {}
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  (a broken library raises what it likes)
            missing[name] = f"{type(error).__name__}: {error}"
    return missing


def nats_binary() -> tuple[str, str]:
    """Version of the nats-server that `up` would run, and why there is none."""
    from bus.errors import ServerFailed
    from bus.server import find_binary

    try:
        return _output(str(find_binary()), "--version"), ""
    except (ServerFailed, OSError, subprocess.SubprocessError) as error:
        return "", str(error)


def port(host: str, number: int, kind: socket.SocketKind, *, ours: bool) -> PortFact:
    flag = FLAGS[kind]
    if ours or number == 0:
        return PortFact(flag, number, free=not ours, ours=ours)
    try:
        choose(host, number, kind)
    except CommandFailed as failed:
        holder = holder_of(number, kind)
        if "is taken" in str(failed):
            return PortFact(flag, number, free=False, holder=holder)
        return PortFact(flag, number, free=False, error=str(failed))
    return PortFact(flag, number, free=True)


def holder_of(number: int, kind: socket.SocketKind) -> str:
    """Name and pid of who listens on a port; empty when this user may not know."""
    try:
        connections = psutil.net_connections("tcp" if kind == socket.SOCK_STREAM else "udp")
    except (psutil.Error, OSError):
        return ""
    for connection in connections:
        listens = kind == socket.SOCK_DGRAM or connection.status == psutil.CONN_LISTEN
        if listens and connection.laddr and connection.laddr.port == number and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return ""


def data_folder(path: Path) -> tuple[str, int]:
    """Why it cannot be written to, and the free bytes there."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        return "", shutil.disk_usage(there).free
    except OSError as error:
        return f"cannot be written to: {error.strerror}", 0


def open_files() -> tuple[int, int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _files(soft), _files(hard)


def _files(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def rmem_max() -> int | None:
    try:
        return int(RMEM_MAX.read_text())
    except (OSError, ValueError):
        return None


def engine(*, wanted: bool, gpus_wanted: int) -> EngineFact:
    """Vllm, torch and GPUs; imports them in a process of its own."""
    build, number = installed()
    fact = EngineFact(
        wanted=wanted, vllm=number, vllm_build=build, gpus=gpus(), gpus_wanted=gpus_wanted
    )
    if not build:
        return fact
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", START],
            capture_output=True,
            text=True,
            timeout=ENGINE_S,
            check=False,
        )
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return replace(fact, **told)
    except subprocess.TimeoutExpired:
        return replace(fact, probe_error=f"torch is not imported within {ENGINE_S:g} s")
    except (ValueError, IndexError, TypeError):
        words = done.stderr.strip().splitlines()
        return replace(fact, probe_error=words[-1][:500] if words else "it ended without a word")


def gpus() -> tuple[str, ...]:
    """Number, name and memory of each GPU that nvidia-smi shows."""
    try:
        query = "--query-gpu=index,name,memory.total,memory.used"
        return tuple(_output("nvidia-smi", query, "--format=csv,noheader").splitlines())
    except (OSError, subprocess.SubprocessError):
        return ()


def model_files(name: str) -> tuple[list[str] | None, str]:
    """Names in the model's directory (None: it is none), and why it cannot be read."""
    if not name or not (name.startswith(("/", "./", "../", "~")) or Path(name).exists()):
        return None, ""
    try:
        return [entry.name for entry in Path(name).expanduser().iterdir()], ""
    except OSError as error:
        return [], error.strerror or str(error)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True)
    return done.stdout.strip()


async def yard(where: Found) -> YardFact:
    """A yard that an `up` runs; what does not answer is a fact, never an exception."""
    assert where.page is not None
    host, number = where.page.url.removeprefix("http://").rsplit(":", 1)
    (answer, info, (states, skew, error)) = await asyncio.gather(
        asyncio.to_thread(probe.http_get, host.strip("[]"), int(number), "/ready"),
        probe.nats_info(where.nats_url),
        _processes(where),
    )
    fact = YardFact(
        url=where.page.url,
        http_status=answer and answer[0],
        nats_url=where.nats_url,
        nats_version=str(info.get("version", "")),
        bus_error=error,
        states=states,
        skew_ms=skew,
    )
    if error:
        return replace(fact, datagram_error="not tried without NATS")
    took_ms, why = await _datagram(where)
    return replace(fact, datagram_ms=took_ms, datagram_error=why)


async def _processes(where: Found) -> tuple[dict[str, str | None], dict[str, float], str]:
    """State by instance, the least that each clock is away from ours, and why the bus is not."""
    from bus.errors import BusError
    from components.cli.operator_bus import operator
    from components.cli.own_nats import NAME

    names = [n for n, p in (where.page.processes if where.page else {}).items()
             if p.component != NAME]  # fmt: skip
    try:
        async with operator(where) as bus:
            answers = await asyncio.gather(*(_shown(bus, name) for name in names))
    except (BusError, CommandFailed) as error:
        return {}, {}, str(error)
    states = {name: state for name, (state, _) in zip(names, answers, strict=True)}
    skew = {n: away for n, (_, away) in zip(names, answers, strict=True) if away is not None}
    return states, skew, ""


async def _shown(bus: Any, name: str) -> tuple[str | None, float | None]:
    from bus.errors import BusError
    from bus.subjects import show_component
    from schemas.fleet import ShowComponent, ShowComponentReply

    try:
        reply = await bus.ask(
            show_component(name), ShowComponent(), ShowComponentReply, timeout_s=ANSWER_S
        )
    except BusError:
        return None, None
    # A state that began in our future: its clock is ahead by at least that.
    ahead_ms = reply.heartbeat.since_ms - time.time_ns() // 1_000_000
    return reply.heartbeat.state, max(0.0, float(ahead_ms))


async def _datagram(where: Found) -> tuple[float | None, str]:
    """Send one state to the bridge and wait until it stands in ENGINE_STATE: ms, or why not."""
    from bus.errors import BusError
    from bus.history import History
    from bus.subjects import engine_states_received
    from components.bridge.datagram import test_datagram

    assert where.page is not None
    host, _, number = where.page.udp.rpartition(":")
    subject = f"{where.prefix}.{engine_states_received(ENGINE_ID).split('.', 1)[1]}"
    try:
        key_file = keyring.find(where.keys, keyring.HISTORY, keyring.HISTORY)
        async with History(where.nats_url, key_file, prefix=where.prefix) as history:
            start_seq = (await history.state("ENGINE_STATE")).last_seq + 1
            began_s = time.monotonic()
            _send(host.strip("[]"), int(number), test_datagram(ENGINE_ID, time.time_ns() // 10**6))
            while time.monotonic() < began_s + DATAGRAM_S:
                async for _ in history.read("ENGINE_STATE", start_seq=start_seq, subject=subject):
                    return (time.monotonic() - began_s) * 1e3, ""
                await asyncio.sleep(DATAGRAM_POLL_S)
    except (BusError, CommandFailed, OSError) as error:
        return None, f"a test datagram could not be sent or seen: {error}"
    return None, f"a test datagram to udp {where.page.udp} did not arrive within {DATAGRAM_S:g} s"


def _send(host: str, number: int, datagram: bytes) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(datagram, (host, number))
