"""What an operator may choose about the bridge. Section ``bridge``."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from components.host.settings import Settings


class BridgeSettings(Settings):
    """The seed's own variables are heard too."""

    env_aliases: ClassVar[Mapping[str, str]] = {
        "VLLM_STATE_GATEWAY_UDP_PORT": "udp_port",
        "VLLM_STATE_GATEWAY_BIND_ADDRESS": "bind_address",
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
