"""Where spans go: nowhere, to standard error, or to a collector by OTLP over HTTP.

The bus alone makes spans, and only for requests whose traceparent says sampled, so a process
without an exporter pays nothing.
"""

import logging
import sys
import threading
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from components.host.settings import HostSettings
from components.host.version import version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log: Final = logging.getLogger("switchyard.telemetry")


class Telemetry:
    """The exporter of one process."""

    def __init__(self, settings: HostSettings, component: str) -> None:
        self._settings = settings
        self._component = component
        self._shutdown: threading.Thread | None = None

    def start(self) -> None:
        """Install the tracer provider that the settings ask for, if any. Once per process."""
        if self._settings.telemetry == "none":
            return
        # The SDK takes a quarter of a second to import: only who asked for it pays.
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased  # noqa: PLC0415

        resource = Resource.create(
            {
                "service.name": f"switchyard.{self._component}",
                "service.instance.id": self._settings.instance,
                "service.version": version(),
            }
        )
        provider = TracerProvider(ParentBased(ALWAYS_ON), resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(self._exporter()))
        trace.set_tracer_provider(provider)
        self._shutdown = threading.Thread(target=provider.shutdown, daemon=True)

    def stop(self) -> None:
        """Let the last spans leave, for at most ``telemetry_flush_s``."""
        if self._shutdown is None:
            return
        # In a daemon thread: a collector that hangs must not hold up the exit.
        self._shutdown.start()
        self._shutdown.join(self._settings.telemetry_flush_s)
        if self._shutdown.is_alive():
            log.warning("the collector is slow: the last spans are lost")
        self._shutdown = None

    def _exporter(self) -> "SpanExporter":
        if self._settings.telemetry == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415

            return ConsoleSpanExporter(out=sys.stderr)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )

        endpoint = f"{self._settings.telemetry_endpoint.rstrip('/')}/v1/traces"
        return OTLPSpanExporter(endpoint=endpoint, timeout=self._settings.telemetry_flush_s or 1)
