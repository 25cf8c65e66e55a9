"""The record of each request's life, as one process sees it, on its way to REQUESTS.

Steps leave in batches bounded by time and bytes, because a message per step would cost more than
the step. Nothing waits: what the bus cannot take is dropped there and counted.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from bus.bus import Bus
from bus.errors import MessageTooLarge
from bus.subjects import request_events_batched
from components.host.clock import Clock
from components.host.counters import Counters
from schemas.codes import RequestStep
from schemas.request import RequestEvent, RequestEventsBatched

Value = str | int | float | None | list[str | int | float | None]

BATCH_AGE_S: Final = 0.010
BATCH_BYTES: Final = 128 * 1024


class Recorder:
    """Collects ``RequestEvent``; at most ``BATCH_BYTES`` of them are ever held."""

    def __init__(self, bus: Bus, clock: Clock, counters: Counters) -> None:
        self._bus = bus
        self._clock = clock
        self._counters = counters
        self._subject = request_events_batched(bus.source)
        self._events: list[RequestEvent] = []
        self._bytes = 0
        self._seq = 0
        self._timer: asyncio.TimerHandle | None = None

    def record(
        self,
        request_id: str,
        step: RequestStep,
        attempt: int,
        *,
        trace: str | None = None,
        detail: Mapping[str, Value] | None = None,
    ) -> RequestEvent:
        """Note that ``step`` happened now; ``detail`` holds lengths, hashes, names, no content."""
        self._seq += 1
        event = RequestEvent(
            request_id=request_id,
            step=step,
            attempt=attempt,
            at_ms=self._clock.wall_ms(),
            seq=self._seq,
            traceparent=trace,
            detail=dict(detail or {}),
        )
        self._events.append(event)
        self._bytes += _bytes_about(event)
        if self._bytes >= BATCH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_AGE_S, self.flush)
        return event

    def flush(self) -> None:
        """Send what is held, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._events:
            return
        events, self._events, self._bytes = tuple(self._events), [], 0
        try:
            self._bus.publish(self._subject, RequestEventsBatched(events=events))
        except MessageTooLarge:
            self._counters.add("events_too_large_total", len(events))
        else:
            self._counters.add("events_recorded_total", len(events))


def _bytes_about(event: RequestEvent) -> int:
    """About what the event takes on the wire; the payload limit is 64 times the batch's."""
    size = 48 + len(event.request_id) + (len(event.traceparent) if event.traceparent else 0)
    for name, value in event.detail.items():
        size += len(name) + 2 + _value_bytes_about(value)
    return size


def _value_bytes_about(value: Value) -> int:
    if isinstance(value, str):
        return len(value) + 5
    if isinstance(value, list):
        return 5 + sum(_value_bytes_about(v) for v in value)
    return 9
