"""What an operator may choose about the bridge. Section ``bridge``."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from components.bridge.address import normal
from components.host.settings import Settings


class BridgeSettings(Settings):
    """The seeds' own variables are heard too."""

    env_aliases: ClassVar[Mapping[str, str]] = {
        "VLLM_STATE_GATEWAY_UDP_PORT": "udp_port",
        "VLLM_STATE_GATEWAY_BIND_ADDRESS": "bind_address",
        "PROXY_PORT": "ping_port",
        "PREFILL_ADDRS": "prefill_addrs",
        "DECODE_ADDRS": "decode_addrs",
    }

    bind_address: str = "0.0.0.0"  # noqa: S104  (senders are on other hosts)
    #: 0 takes a free port; the heartbeat's ``address`` says which.
    udp_port: int = Field(default=9999, ge=0, le=65535)
    #: Asked of the kernel, which may give less (net.core.rmem_max).
    receive_buffer_bytes: int = Field(default=8 * 1024 * 1024, ge=4096)
    #: A longer datagram is refused, as the seed's own gateway cuts it off there.
    datagram_bytes_max: int = Field(default=4096, ge=256, le=65_507)
    #: Datagrams that may wait for one turn of the loop; the newest beyond are dropped, counted.
    pending_max: int = Field(default=4096, ge=1)

    #: Per sending host: a rack of engines behind one address fits, a flood does not.
    source_per_s: float = Field(default=1000.0, gt=0)
    source_burst: int = Field(default=2000, ge=1)
    sources_max: int = Field(default=4096, ge=1)
    #: All senders together.
    total_per_s: float = Field(default=10_000.0, gt=0)
    total_burst: int = Field(default=20_000, ge=1)

    #: An engine counts as active while its last state is no older.
    stale_after_s: float = Field(default=2.0, gt=0)
    purge_after_s: float = Field(default=300.0, gt=0)
    #: How long a timestamp outranks older ones: a sender whose clock was set back is heard again.
    order_ttl_s: float = Field(default=10.0, gt=0)
    engines_max: int = Field(default=4096, ge=1)

    #: Where P2P engines ping over ZMQ, by custom 30001; 0 opens nothing.
    ping_port: int = Field(default=0, ge=0, le=65535)
    #: Pings carry no proof of who sends them: open this to the engines' network only.
    ping_bind_address: str = "127.0.0.1"
    #: An engine expires when it was not heard for so long. It pings every 3 s: two may be lost.
    ping_ttl_ms: int = Field(default=10_000, ge=1000)
    registered_max: int = Field(default=4096, ge=1)

    #: Engines that do not ping, ``host:port`` of their HTTP server. They never expire.
    prefill_addrs: tuple[str, ...] = Field(default=(), max_length=4096)
    decode_addrs: tuple[str, ...] = Field(default=(), max_length=4096)

    @field_validator("prefill_addrs", "decode_addrs")
    @classmethod
    def _normal(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normal, addresses))

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        addresses = self.prefill_addrs + self.decode_addrs
        if len(set(addresses)) < len(addresses):
            raise ValueError("prefill_addrs and decode_addrs name an address twice")
        return self
