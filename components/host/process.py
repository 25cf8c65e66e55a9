"""From a command to a running component, and from there to an exit code.

    settings -> signals -> telemetry -> bus -> starting -> ready -> draining -> stopped

Exit codes: 0 told to stop and did; 69 no bus, or something else outside is missing; 70 a fault of
ours; 78 bad settings; 128 + n ended at once by a second signal.
"""

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import uvloop

from bus.bus import Bus
from bus.errors import BusError, NotConnected
from components.host import logs
from components.host.clock import SystemClock
from components.host.component import Component
from components.host.counters import Counters
from components.host.errors import (
    EXIT_FAULT,
    EXIT_OK,
    EXIT_SETTINGS,
    EXIT_UNAVAILABLE,
    BadSettings,
    HostError,
)
from components.host.heartbeat import Presence
from components.host.host import Host
from components.host.parent import die_with_parent
from components.host.recorder import Recorder
from components.host.settings import HostSettings, Settings, load_process
from components.host.stopping import Interrupted, StopRequest
from components.host.tasks import Tasks
from components.host.telemetry import Telemetry

S = TypeVar("S", bound=Settings)

#: What comes after the drain is release only; it may not hold up the exit.
STOP_S: Final = 5.0
DRAIN_GRACE_S: Final = 1.0
FLUSH_S: Final = 2.0

log: Final = logging.getLogger("switchyard.process")


def run(
    component: str,
    make: Callable[[Host, S], Component],
    settings_type: type[S],
    argv_overrides: Mapping[str, object],
) -> int:
    """Run ``component`` until told to stop; returns the exit code.

    ``argv_overrides``: ``config`` (path of the TOML file), ``host.<field>``, and the component's
    own fields; they win over the environment, which wins over the file.
    """
    epoch = time.time_ns() // 1_000_000
    stop = StopRequest()
    stop.listen()
    try:
        host_settings, settings = load_process(component, settings_type, argv_overrides, os.environ)
    except BadSettings as error:
        sys.stderr.write(f"switchyard {component}: {error}\n")
        return EXIT_SETTINGS
    logs.configure(host_settings.instance, host_settings.log_level, host_settings.log_format)
    if host_settings.die_with_parent and not die_with_parent(host_settings.parent_pid):
        log.warning("the parent is gone already")
        return EXIT_OK
    telemetry = Telemetry(host_settings, component)
    telemetry.start()

    async def life() -> int:
        stop.listen_in(asyncio.get_running_loop())
        host = assemble(component, host_settings, epoch)
        return await live(host, lambda host: make(host, settings), stop, on_ready=_freeze)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(life())
    finally:
        telemetry.stop()


def assemble(component: str, settings: HostSettings, epoch: int) -> Host:
    """A host on a real bus, not yet connected."""
    from bus.endpoint import INBOX  # noqa: PLC0415
    from bus.nats_bus import NatsBus  # noqa: PLC0415

    def fault(error: BaseException) -> None:
        host.fault(error)

    bus: Bus = NatsBus(
        settings.nats_url,
        source=settings.instance,
        epoch=epoch,
        key_file=settings.nats_key_file,
        prefix=settings.subject_prefix,
        inbox_prefix=INBOX + component if settings.nats_key_shared else None,
        on_fault=fault,
        connect_timeout_s=settings.connect_timeout_s,
    )
    clock, counters = SystemClock(), Counters()
    host = Host(
        component=component,
        instance=settings.instance,
        epoch=epoch,
        bus=bus,
        clock=clock,
        tasks=Tasks(clock, fault),
        recorder=Recorder(bus, clock, counters),
        counters=counters,
        settings=settings,
    )
    return host


async def live(
    host: Host,
    make: Callable[[Host], Component],
    stop: StopRequest,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """One life of a component on ``host``; returns the exit code."""
    try:
        await stop.interrupts(host.bus.connect())
        return await _serve(host, make, stop, on_ready)
    except NotConnected as error:
        host.log.error("no bus at %s: %s", host.settings.nats_url, error)  # noqa: TRY400
        return EXIT_UNAVAILABLE
    except Interrupted:
        return EXIT_OK
    finally:
        await _bounded(host, "close", host.bus.close(), FLUSH_S)


async def _serve(
    host: Host, make: Callable[[Host], Component], stop: StopRequest, on_ready: Callable[[], None]
) -> int:
    faults: list[BaseException] = []

    def on_fault(error: BaseException) -> None:
        faults.append(error)
        stop.ask("fault")

    host.on_fault = on_fault
    presence = Presence(host)
    component: Component | None = None
    code = EXIT_OK
    try:
        component = make(host)
        await presence.start(component)
        await _work(host, component, presence, stop, on_ready)
    except Interrupted:
        host.log.info("stopped while starting", extra={"reason": stop.reason})
    except (HostError, NotConnected) as error:
        host.log.error("cannot start: %s", error)  # noqa: TRY400
        code = error.exit_code if isinstance(error, HostError) else EXIT_UNAVAILABLE
    except Exception as error:  # noqa: BLE001  (whatever it is, it was not foreseen)
        host.fault(error)
    await _leave(host, component, presence)
    return EXIT_FAULT if faults else code


async def _work(
    host: Host,
    component: Component,
    presence: Presence,
    stop: StopRequest,
    on_ready: Callable[[], None],
) -> None:
    await stop.interrupts(component.start())
    on_ready()
    presence.enter("ready")
    host.log.info("ready", extra={"epoch": host.epoch, "pid": os.getpid()})
    await stop.wait()
    presence.enter("draining")
    host.log.info("draining", extra={"reason": stop.reason})
    drain_s = host.settings.drain_s
    await _bounded(host, "drain", component.drain(drain_s), drain_s + DRAIN_GRACE_S)


async def _leave(host: Host, component: Component | None, presence: Presence) -> None:
    if left := host.tasks.running():
        host.log.info("cancelling %s", ", ".join(map(str, left)))
    if component is not None:
        await _bounded(host, "stop", component.stop(), STOP_S)
    if stuck := await host.tasks.stop():
        host.log.error("does not end when cancelled: %s", ", ".join(map(str, stuck)))
    host.recorder.flush()
    await _bounded(host, "goodbye", presence.stop(), FLUSH_S)
    presence.enter("stopped")
    await _bounded(host, "flush", host.bus.flush(FLUSH_S), FLUSH_S + 1)
    host.log.info("stopped")


async def _bounded(
    host: Host, what: str, coroutine: Coroutine[Any, Any, None], limit_s: float
) -> None:
    """Await for at most ``limit_s``; nothing may keep the next step of the exit from its turn."""
    try:
        async with asyncio.timeout(limit_s):
            await coroutine
    except TimeoutError:
        host.log.error("%s did not end within %.1f s", what, limit_s)  # noqa: TRY400
    except BusError as error:
        host.log.warning("%s: %s", what, error)
    except Exception as error:  # noqa: BLE001  (whatever it is, it was not foreseen)
        host.fault(error)


def _freeze() -> None:
    """What exists when a process is ready stays: keep the collector from walking over it."""
    gc.collect()
    gc.freeze()
