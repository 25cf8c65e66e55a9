"""The scheduler's settings."""

from typing import Literal

from pydantic import Field

from components.host.settings import Settings


class SchedulerSettings(Settings):
    """Bounds and order of the queue. Times in seconds unless the name says otherwise."""

    order: Literal["fifo"] = "fifo"
    queue_requests_max: int = Field(default=10_000, ge=1)
    window_cards_max: int = Field(default=32, ge=1, le=256)
    window_timeout_s: float = Field(default=2.0, gt=0)
    window_retry_s: float = Field(default=0.25, gt=0)
    attempts_max: int = Field(default=32, ge=1)
    orphan_after_s: float = Field(default=30.0, gt=0)
    tombstone_s: float = Field(default=60.0, gt=0)
    tombstones_max: int = Field(default=20_000, ge=1)
    tick_ms: int = Field(default=100, ge=1)
    snapshot_s: float = Field(default=3.0, gt=0)
    bodies_bytes_max: int = Field(default=64 * 1024 * 1024, ge=0)
