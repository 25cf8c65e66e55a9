"""What an `up` runs. Section ``up`` of the TOML file, ``SWITCHYARD_UP_*`` in the environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from components.host.settings import Settings


class UpSettings(Settings):
    """None means: as the component itself has it by default."""

    engine: Literal["sim", "vllm"] | None = None
    model: str | None = None
    prefill: int | None = Field(default=None, ge=0, le=64)
    decode: int | None = Field(default=None, ge=0, le=64)
    aggregated: int | None = Field(default=None, ge=0, le=64)
    #: How fast a simulated engine is, and how much faster than real time it runs.
    profile: str | None = None
    speed: float | None = Field(default=None, gt=0)
    #: One GPU for each worker in turn, prefill first; empty: all see all.
    devices: tuple[int, ...] = ()

    host: str = "127.0.0.1"
    #: 0 takes a free port.
    port: int = Field(default=8000, ge=0, le=65535)
    udp_port: int = Field(default=9999, ge=0, le=65535)

    #: Where JetStream's files, keys and logs lie; the user's state directory unless given.
    data: Path | None = None
    #: A NATS cluster to use instead of a server of our own, and the keys for it.
    nats: str | None = None
    keys: Path | None = None

    #: Give up when requests cannot be served by then; a real engine loads for minutes.
    start_timeout_s: float = Field(default=600.0, gt=0)
