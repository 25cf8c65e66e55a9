"""What an `up` runs. Section ``up`` of the TOML file, ``SWITCHYARD_UP_*`` in the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from bus.streams import Limits, limited
from components.host.settings import Settings


class UpSettings(Settings):
    """None means: as the component itself has it by default.

    The variables of the seed's start script are heard too; its KV and engine HTTP ports have no
    counterpart (engines run inside their workers, links choose their ports).
    """

    env_aliases: ClassVar[Mapping[str, str]] = {
        "MODEL": "model",
        "PREFILL_GPU": "prefill_gpus",
        "DECODE_GPU": "decode_gpus",
        "HTTP_PROXY_PORT": "port",
        "PROXY_PORT": "ping_port",
        "PREFILL_ADDRS": "prefill_addrs",
        "DECODE_ADDRS": "decode_addrs",
        "TIMEOUT_SECONDS": "start_timeout_s",
    }

    engine: Literal["sim", "vllm", "openai"] | None = None
    model: str | None = None
    prefill: int | None = Field(default=None, ge=0, le=64)
    decode: int | None = Field(default=None, ge=0, le=64)
    aggregated: int | None = Field(default=None, ge=0, le=64)
    #: How fast a simulated engine is, and how much faster than real time it runs.
    profile: str | None = None
    speed: float | None = Field(default=None, gt=0)
    #: False: workers are started by hand (`switchyard join`), with keys that are made here.
    workers: bool = True

    #: ``tp`` GPUs for each worker in turn, prefill first; empty: all see all.
    devices: tuple[int, ...] = ()
    #: The same by role; they also say how many engines there are unless that is given.
    prefill_gpus: tuple[int, ...] = ()
    decode_gpus: tuple[int, ...] = ()
    #: GPUs per engine (vLLM's tensor_parallel_size).
    tp: int | None = Field(default=None, ge=1, le=64)
    #: Arguments of vLLM's engine; they win over [worker.engine_args].
    engine_args: dict[str, Any] = Field(default_factory=dict)

    #: Engines elsewhere that speak OpenAI's API, HOST:PORT each, with a worker here for each.
    prefill_addrs: tuple[str, ...] = ()
    decode_addrs: tuple[str, ...] = ()
    aggregated_addrs: tuple[str, ...] = ()

    #: Tenants whose programs may ask over NATS: DATA/keys/client-TENANT.nk is made for each.
    clients: tuple[str, ...] = ("default",)

    #: How much of the past is kept, by stream: ``[up.history.REQUESTS] age_s, bytes, per_subject``.
    history: dict[str, Limits] = Field(default_factory=dict)
    #: Copies of each stream; more than one needs a cluster.
    history_replicas: int = Field(default=1, ge=1, le=5)

    host: str = "127.0.0.1"
    #: 0 takes a free port.
    port: int = Field(default=8000, ge=0, le=65535)
    udp_port: int = Field(default=9999, ge=0, le=65535)
    #: Where vLLM engines elsewhere register themselves; None: as the bridge has it.
    ping_port: int | None = Field(default=None, ge=0, le=65535)

    #: Where JetStream's files, keys and logs lie; the user's state directory unless given.
    data: Path | None = None
    #: A NATS cluster to use instead of a server of our own, and the keys for it.
    nats: str | None = None
    keys: Path | None = None

    #: Give up when requests cannot be served by then; a real engine loads for minutes.
    start_timeout_s: float = Field(default=600.0, gt=0)

    @field_validator("history")
    @classmethod
    def _can_be_kept(cls, history: dict[str, Limits]) -> dict[str, Limits]:
        limited(history)
        return history
