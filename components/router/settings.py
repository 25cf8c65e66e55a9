"""The router's settings."""

from typing import Literal

from pydantic import Field

from components.host.settings import Settings


class RouterSettings(Settings):
    """How engines are chosen, and how much they are given at a time.

    ``prefill_requests_max`` and ``prefill_tokens_max`` bound what a prefill engine holds, so that
    the rest waits in the scheduler's queue where order can still change; an idle engine always
    takes one. ``decode_overbook`` lets a decode engine hold more sequences than it runs.
    """

    policy: Literal["round_robin", "least_loaded"] = "least_loaded"
    prefill_requests_max: int = Field(default=16, ge=1)
    prefill_tokens_max: int = Field(default=32_768, ge=1)
    decode_overbook: int = Field(default=0, ge=0)
    any_engine_may_do_both: bool = True
    stale_after_s: float = Field(default=2.0, gt=0)
    warmup_s: float = Field(default=0.6, ge=0)
    tick_ms: int = Field(default=100, ge=1)
    snapshot_s: float = Field(default=3.0, gt=0)
