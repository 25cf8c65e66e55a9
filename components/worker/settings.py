"""The worker's settings."""

from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from components.domain.engine_model.request import EngineLimits
from components.domain.handoff import HandoffSettings
from components.domain.profiles import profile_named
from components.host.settings import Settings
from schemas.codes import Role

MIB = 1024 * 1024
#: vLLM's names of our roles.
KV_ROLES: Final = {"prefill": "kv_producer", "decode": "kv_consumer", "aggregated": "kv_both"}


class WorkerSettings(Settings):
    """What the engine is, how much it takes, and how long the agent keeps things.

    ``shard`` names the engines that can exchange KV; the model's name unless given.
    """

    role: Role = "aggregated"
    model: str = Field(default="sim/words", min_length=1, max_length=200)
    shard: str = ""
    engine: Literal["sim", "vllm"] = "sim"

    # The simulated engine.
    #: Names: components/domain/profiles.py; or constant:ttft_ms=...,itl_ms=...
    profile: str = "llama3-8b/tp1/h100"
    #: How much faster than real time it runs, transfers included.
    speed: float = Field(default=1.0, gt=0)
    context_tokens_max: int = Field(default=32_768, ge=2)
    seqs_max: int = Field(default=256, ge=1)
    step_tokens_max: int = Field(default=2048, ge=1)
    #: None takes what the profile's GPU has room for.
    kv_pages: int | None = Field(default=None, ge=1)
    waiting_max: int = Field(default=4096, ge=1)
    #: The link to other engines, each transfer after the other.
    transfer_gb_per_s: float = Field(default=40.0, gt=0)
    transfer_latency_ms: float = Field(default=2.0, ge=0)

    # vLLM.
    #: The model's directory, or its name on the hub; its name here unless given.
    model_source: str = ""
    #: Arguments of vLLM's engine, by their names: max_model_len, block_size, ...
    engine_args: dict[str, Any] = Field(default_factory=dict)
    #: vLLM's KVTransferConfig: kv_connector, kv_connector_module_path, kv_connector_extra_config,
    #: ... Empty for an engine that hands nothing over; role and engine id go without saying.
    kv_transfer: dict[str, Any] = Field(default_factory=dict)

    #: Say on the bus what enters and leaves its prefix cache.
    kv_events: bool = False

    # The handoff; what each means: components/domain/handoff.py.
    lease_ms: int = Field(default=10_000, ge=100)
    hold_ms_max: int = Field(default=60_000, ge=100)
    offer_wait_ms: int = Field(default=60_000, ge=10)
    room_wait_ms: int = Field(default=30_000, ge=10)
    ready_wait_ms: int = Field(default=10_000, ge=10)
    resend_ms: int = Field(default=1_000, ge=10)
    fallback: Literal["recompute", "fail"] = "recompute"

    # The agent.
    load_interval_ms: int = Field(default=100, ge=1)
    tick_ms: int = Field(default=50, ge=1)
    attempts_max: int = Field(default=4096, ge=1)
    #: Attempts that ended, so that a late dispatch of one is not run again.
    ended_max: int = Field(default=8192, ge=1)
    ended_ttl_s: float = Field(default=120.0, gt=0)
    #: Generation goes on this long without its gateway, and longer if the request asks for it.
    gateway_grace_ms: int = Field(default=3_000, ge=0)
    peer_silent_after_s: float = Field(default=2.0, gt=0)
    #: When nobody at all was heard for this long, it is we who are cut off.
    deaf_after_s: float = Field(default=1.0, gt=0)
    body_timeout_ms: int = Field(default=2_500, ge=1)
    body_tries: int = Field(default=2, ge=1)
    #: What left is kept for gateways that missed it.
    kept_s: float = Field(default=30.0, gt=0)
    kept_bytes_max: int = Field(default=64 * MIB, ge=MIB)
    streams_max: int = Field(default=8192, ge=1)

    @field_validator("profile")
    @classmethod
    def _exists(cls, profile: str) -> str:
        profile_named(profile)
        return profile

    @model_validator(mode="after")
    def _fits(self) -> "WorkerSettings":
        self.limits()
        return self

    @model_validator(mode="after")
    def _can_hand_over(self) -> "WorkerSettings":
        if self.engine == "vllm" and self.role != "aggregated" and not self.kv_transfer:
            raise ValueError(f"a {self.role} engine of vLLM needs kv_transfer (a connector)")
        return self

    @property
    def shard_name(self) -> str:
        return self.shard or self.model

    def limits(self) -> EngineLimits:
        """What the simulated engine takes at a time. Raises ValueError when it does not fit."""
        return EngineLimits(
            seqs_max=self.seqs_max,
            step_tokens_max=self.step_tokens_max,
            kv_pages=self.kv_pages,
            waiting_max=self.waiting_max,
        )

    def kv_transfer_config(self, engine_id: str) -> dict[str, Any]:
        """What vLLM is told of its connector; empty without one."""
        if not self.kv_transfer:
            return {}
        return {"kv_role": KV_ROLES[self.role], "engine_id": engine_id, **self.kv_transfer}

    def handoff(self) -> HandoffSettings:
        return HandoffSettings(
            lease_ms=self.lease_ms,
            hold_ms_max=self.hold_ms_max,
            offer_wait_ms=self.offer_wait_ms,
            room_wait_ms=self.room_wait_ms,
            ready_wait_ms=self.ready_wait_ms,
            resend_ms=self.resend_ms,
            fallback=self.fallback,
            transfers_max=self.attempts_max,
        )
