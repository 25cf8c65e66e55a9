"""A UDP socket whose datagrams become events; what registers engines is in ``registrar.py``.

What the socket holds is read together: one reading of the clocks, one message per engine with all
of its states, all in one write to the bus.
"""

import asyncio
from pathlib import Path

from bus import subjects
from bus.bus import Received, Subscription
from components.bridge.core import BridgeCore
from components.bridge.log_file import LogFile
from components.bridge.registrar import Registrar
from components.bridge.settings import BridgeSettings
from components.bridge.trust import Trust
from components.bridge.udp import Packet, Udp, bind
from components.bridge.windows import Windows
from components.domain.signed_frame import BadKeys
from components.host.errors import CannotStart
from components.host.host import Host
from components.host.signing_keys import read_keys
from schemas.engine import EngineStateReceived, EngineStatesReceived, ShowStates


class BridgeService:
    """The bridge as a component."""

    def __init__(self, host: Host, settings: BridgeSettings) -> None:
        self._host = host
        self._settings = settings
        self._core = BridgeCore(
            datagram_bytes_max=settings.datagram_bytes_max,
            source_per_s=settings.source_per_s,
            source_burst=settings.source_burst,
            sources_max=settings.sources_max,
            total_per_s=settings.total_per_s,
            total_burst=settings.total_burst,
            stale_after_s=settings.stale_after_s,
            purge_after_s=settings.purge_after_s,
            order_ttl_s=settings.order_ttl_s,
            engines_max=settings.engines_max,
        )
        self._registrar = Registrar(host, settings)
        self._udp: Udp | None = None
        self._log: LogFile | None = None
        self._address: str | None = None
        self._shown: Subscription | None = None
        self._subjects: dict[str, str] = {}

    async def start(self) -> None:
        settings = self._settings
        clock = self._host.clock
        self._core.trust = trust_of(settings, clock.now_s(), clock.wall_ms())
        if settings.log_states:
            self._log = LogFile(
                Path(settings.log_file),
                bytes_max=settings.log_bytes_max,
                files=settings.log_files_max,
                count=self._host.counters.add,
            )
        bound = await bind(settings.address, settings.udp_port, settings.receive_buffer_bytes)
        self._udp = Udp(
            bound,
            self._take,
            bytes_max=settings.datagram_bytes_max,
            turn_max=settings.turn_max,
            on_error=lambda _: self._host.counters.add("socket_errors_total"),
        )
        self._address = self._udp.address
        self._host.counters["receive_buffer_bytes"] = self._udp.buffer_bytes
        await self._registrar.start()
        subject = subjects.show_states(self._host.instance)
        self._shown = await self._host.bus.subscribe(subject, ShowStates, self._show)
        self._host.tasks.every("bridge.tick", 1.0, self._tick)
        self._say_where()

    async def drain(self, deadline_s: float) -> None:
        """Take what the socket still gives, then close it."""
        await asyncio.sleep(0)
        await self.stop()

    async def stop(self) -> None:
        await self._registrar.stop()
        shown, self._shown = self._shown, None
        if shown is not None:
            await shown.unsubscribe()
        udp, self._udp = self._udp, None
        if udp is not None:
            udp.close()
        log, self._log = self._log, None
        if log is not None:
            await asyncio.to_thread(log.close)

    def heartbeat(self) -> dict[str, object]:
        return {"address": self._address}

    def _say_where(self) -> None:
        settings, udp = self._settings, self._udp
        assert udp is not None
        about = {
            "address": self._address,
            "receive_buffer_bytes": udp.buffer_bytes,
            "trust": settings.trust,
            "log_file": settings.log_file if settings.log_states else None,
        }
        self._host.log.info("listening", extra=about)
        if settings.trust == "legacy" and not settings.is_loopback:
            self._host.counters["unauthenticated"] = 1
            self._host.log.warning(
                "anybody who reaches %s may say what any engine does: set bridge.trust and"
                " bridge.keys_file (deploy/MIGRATION.md)",
                self._address,
            )

    def _show(self, asked: Received[ShowStates]) -> None:
        clock = self._host.clock
        known = self._core.show(asked.message, clock.now_s(), clock.wall_ms())
        settings = self._settings
        listens = {
            "address": self._address or "",
            "network_mode": settings.network_mode,
            "stale_after_ms": round(settings.stale_after_s * 1e3),
        }
        self._host.bus.respond(asked, known.model_copy(update=listens))

    def _take(self, packets: list[Packet]) -> None:
        now_s, wall_ms = self._host.clock.now_s(), self._host.clock.wall_ms()
        core, states = self._core, dict[str, list[EngineStateReceived]]()
        for data, host, port, broadcast in packets:
            event = core.on_datagram(data, host, port, now_s, wall_ms, broadcast=broadcast)
            if event is not None:
                states.setdefault(event.engine_id, []).append(event)
        for engine_id, said in states.items():
            self._publish(engine_id, said)
        if self._log is not None and states:
            self._log.write([state for said in states.values() for state in said])
        self._host.counters.update(core.totals)

    def _publish(self, engine_id: str, said: list[EngineStateReceived]) -> None:
        subject = self._subjects.get(engine_id)
        if subject is None:
            if len(self._subjects) >= self._settings.engines_max:
                self._subjects.clear()
            subject = self._subjects[engine_id] = subjects.engine_states_received(engine_id)
        message = EngineStatesReceived.trusted({"engine_id": engine_id, "states": tuple(said)})
        self._host.bus.publish(subject, message)

    def _tick(self) -> None:
        now_s = self._host.clock.now_s()
        self._core.on_tick(now_s)
        self._host.counters.update(self._core.totals)
        self._host.counters.update(self._core.levels(now_s))
        if self._udp is not None:
            self._host.counters["kernel_dropped_total"] = self._udp.kernel_dropped()


def trust_of(settings: BridgeSettings, now_s: float, wall_ms: int) -> Trust:
    """Whom to believe from now on, by the settings.

    Raises ``CannotStart`` for keys that cannot be used.
    """
    try:
        keys = read_keys(settings.keys_file) if settings.keys_file else {}
    except BadKeys as error:
        raise CannotStart(str(error)) from error
    return Trust(
        settings.trust,
        keys,
        Windows(settings.engines_max, settings.clock_ms_max, now_s, wall_ms),
        settings.networks(),
        frozenset(settings.mixed_engines),
    )
