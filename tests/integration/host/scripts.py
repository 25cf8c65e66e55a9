"""Processes that the tests start: ``python -m tests.integration.host.scripts NAME [args]``."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from opentelemetry import trace

from components.host import logs
from components.host.host import Host
from components.host.process import run
from components.host.settings import HostSettings, Settings
from components.host.telemetry import Telemetry


class Stubborn:
    """Drains as long as it is let, and can fall over on command."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host = host

    async def start(self) -> None:
        if "fault" in sys.argv:
            _ = self._host.tasks.spawn("breaks", self._break())

    async def drain(self, deadline_s: float) -> None:
        if "fault" not in sys.argv:
            await asyncio.sleep(deadline_s)

    async def stop(self) -> None:
        pass

    def heartbeat(self) -> dict[str, object]:
        return {}

    async def _break(self) -> None:
        raise ValueError("planted")


def stubborn() -> int:
    return run("gateway", Stubborn, Settings, {})


def told_before_the_loop() -> int:
    """A stop that comes after ``run`` began and before it has a loop."""
    configure = logs.configure

    def told(instance: str, level: str, line_format: str) -> None:
        configure(instance, level, line_format)
        os.kill(os.getpid(), signal.SIGTERM)

    logs.configure = told
    return stubborn()


def parent() -> int:
    """Start a child that shall die with us, tell its pid, wait to be killed."""
    environ = {**os.environ, "SWITCHYARD_HOST_DIE_WITH_PARENT": "1"}
    command = [sys.executable, "-P", "-m", __spec__.name, "stubborn"]
    with subprocess.Popen(command, env=environ) as child:
        Path(sys.argv[2]).write_text(str(child.pid))
        time.sleep(600)
    return 0


def spans() -> int:
    """Make one sampled span and go."""
    settings = HostSettings(
        instance="gateway-0",
        telemetry="console" if sys.argv[2] == "console" else "otlp",
        telemetry_endpoint=sys.argv[2],
        telemetry_flush_s=float(sys.argv[3]),
    )
    logs.configure("gateway-0", "info", "text")
    telemetry = Telemetry(settings, "gateway")
    telemetry.start()
    with trace.get_tracer("test").start_as_current_span("a request"):
        pass
    telemetry.stop()
    return 0


if __name__ == "__main__":
    sys.exit(
        {f.__name__: f for f in (stubborn, told_before_the_loop, parent, spans)}[sys.argv[1]]()
    )
