"""Which engine the settings ask for."""

from components.domain.profiles import profile_named
from components.host.host import Host
from components.worker.engine import Engine
from components.worker.settings import WorkerSettings
from components.worker.simulated.engine import SimulatedEngine, SimulatedModel
from components.worker.simulated.link import SimulatedLink


def make_engine(host: Host, settings: WorkerSettings) -> Engine:
    """The engine, not yet started."""
    assert settings.engine == "sim", "the settings allow no other"
    link = SimulatedLink(
        host.clock,
        gb_per_s=settings.transfer_gb_per_s,
        latency_ms=settings.transfer_latency_ms,
        speed=settings.speed,
    )
    return SimulatedEngine(
        SimulatedModel(settings.model, host.epoch // 1000, settings.context_tokens_max),
        profile_named(settings.profile),
        settings.limits(),
        clock=host.clock,
        link=link,
        speed=settings.speed,
        on_fault=host.fault,
    )
