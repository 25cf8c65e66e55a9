"""The router's settings."""

from typing import Literal

from pydantic import Field

from components.host.settings import Settings
from components.router.policies import ClassBounds


class RouterSettings(Settings):
    """How engines are chosen, and how much they are given at a time.

    ``prefill_requests_max`` and ``prefill_tokens_max`` bound what a prefill engine holds, so that
    the rest waits in the scheduler's queue where order can still change; an idle engine always
    takes one. ``decode_overbook`` lets a decode engine hold more sequences than it runs.

    ``segregate`` gives requests with more than ``segregate_prompt_tokens`` of prompt, or more than
    ``segregate_ratio`` times what they may write (``segregate_output_tokens`` if their client set
    no limit), whole to the prefill engines, all others to the decode engines. An aggregated engine
    takes what finds no room there. A pool without a usable engine is stood in for by the other one;
    when it is full, its requests ``wait`` or ``spill`` into the other one. Those that wait stay at
    the head of the queue: once they fill a window of the scheduler, all behind them wait as well.
    """

    policy: Literal["round_robin", "least_loaded", "segregate"] = "least_loaded"
    segregate_prompt_tokens: int = Field(default=800, ge=0)
    segregate_ratio: float = Field(default=4.0, gt=0)
    segregate_output_tokens: int = Field(default=100, ge=1)
    segregate_when_full: Literal["wait", "spill"] = "wait"
    prefill_requests_max: int = Field(default=16, ge=1)
    prefill_tokens_max: int = Field(default=32_768, ge=1)
    decode_overbook: int = Field(default=0, ge=0)
    any_engine_may_do_both: bool = True
    stale_after_s: float = Field(default=2.0, gt=0)
    warmup_s: float = Field(default=0.6, ge=0)
    tick_ms: int = Field(default=100, ge=1)
    snapshot_s: float = Field(default=3.0, gt=0)

    def class_bounds(self) -> ClassBounds:
        """What parts the two classes of ``segregate``."""
        return ClassBounds(
            self.segregate_prompt_tokens, self.segregate_ratio, self.segregate_output_tokens
        )
