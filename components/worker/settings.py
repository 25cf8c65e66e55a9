"""The worker's settings."""

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from components.domain.engine_model.request import EngineLimits
from components.domain.handoff import HandoffSettings
from components.domain.profiles import profile_named
from components.host.settings import Settings
from components.worker.elsewhere_settings import server_url, table
from components.worker.openai_http.settings import OpenAISettings, OpenAITable
from components.worker.sglang.settings import (
    PrefillUrl,
    SglangSettings,
    SglangTable,
    prefill_url,
    whole_pair,
)
from schemas.codes import Role
from schemas.nodes import Topology

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
    engine: Literal["sim", "vllm", "openai", "sglang"] = "sim"

    #: Where it stands, for the registry's record: rack_id, machine_id, numa_node, ...
    topology: Annotated[Topology, BeforeValidator(table)] = Topology()

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
    #: How KV is handed over: ``switchyard`` by our connector, ``other`` by one of vLLM's that
    #: ``kv_transfer`` names, ``none`` not at all. ``auto``: what ``kv_transfer`` names, else ours
    #: for prefill and decode engines, else none.
    connector: Literal["auto", "switchyard", "other", "none"] = "auto"
    #: What carries the bytes of our connector; ``auto``: NCCL between GPUs, Gloo between CPUs.
    link: Literal["auto", "gloo", "nccl"] = "auto"
    #: More for our connector (components/worker/vllm/connector/config.py): link_address, ...
    connector_args: dict[str, Any] = Field(default_factory=dict)
    #: The nkey seed of each rank of the engine, with ``{rank}`` in it or the same for all.
    connector_key_file: str = ""
    #: vLLM's KVTransferConfig: kv_connector, kv_connector_module_path, kv_connector_extra_config,
    #: ... Role and engine id go without saying.
    kv_transfer: dict[str, Any] = Field(default_factory=dict)

    #: Say on the bus what enters and leaves its prefix cache.
    kv_events: bool = False
    #: Names of vLLM's parsers (hermes, ...; deepseek_r1, ...): without them the gateway refuses
    #: ``tool_choice: auto``, and reasoning stays in the content.
    tool_parser: str = ""
    reasoning_parser: str = ""
    #: What calls keep to: ``auto``: tools with ``strict: true`` to their schemas, demanded calls to
    #: their form; ``function``: all calls to their form; ``parameter``: all to their schemas.
    tool_strict_level: Literal["auto", "function", "parameter"] = "auto"
    #: What one JSON schema, regular expression or grammar may cost to compile, in core seconds.
    grammar_cpu_s: float = Field(default=3.0, gt=0, le=15)

    # A server that speaks OpenAI's API.
    #: Where it is: http://HOST:PORT.
    url: Annotated[str, BeforeValidator(lambda given: given and server_url(given))] = ""
    #: How it is spoken to and judged: components/worker/openai_http/settings.py.
    openai: OpenAITable = OpenAISettings()

    # SGLang.
    #: Where the servers are: prefill as URL, "URL PORT" or [URL, bootstrap port or null].
    prefill_urls: tuple[Annotated[PrefillUrl, BeforeValidator(prefill_url)], ...] = ()
    decode_urls: tuple[Annotated[str, BeforeValidator(server_url)], ...] = ()
    #: How they are chosen, spoken to and judged: components/worker/sglang/settings.py.
    sglang: SglangTable = SglangSettings()

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
    def _knows_its_connector(self) -> "WorkerSettings":
        if (self.connector == "other") != bool(self.kv_transfer) and self.connector != "auto":
            raise ValueError('kv_transfer belongs to connector "other" (or "auto"), and it to that')
        return self

    @property
    def hands_over_by(self) -> Literal["switchyard", "other", "none"]:
        """What ``connector`` comes to."""
        if self.connector != "auto":
            return self.connector
        if self.kv_transfer:
            return "other"
        return "none" if self.role == "aggregated" else "switchyard"

    @model_validator(mode="after")
    def _has_whole_pairs(self) -> "WorkerSettings":
        if self.engine == "openai":
            self._has_a_server()
        if self.engine == "sglang":
            whole_pair(self.prefill_urls, self.decode_urls)
            if self.role != "aggregated":
                raise ValueError('engine "sglang" does both halves: its role is aggregated')
        return self

    def _has_a_server(self) -> None:
        if not self.url:
            raise ValueError('engine "openai" is elsewhere: url says where')
        if self.role != "aggregated" and self.openai.handover == "none":
            raise ValueError(f"openai.handover says how a {self.role} engine hands KV over")
        if self.openai.handover == "p2p_nccl" and not self.openai.kv_address:
            raise ValueError("openai.kv_address is where the server's connector listens")

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
