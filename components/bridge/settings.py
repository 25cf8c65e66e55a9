"""What an operator may choose about the bridge. Section ``bridge``."""

import ipaddress
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from components.bridge.address import normal
from components.domain.addresses import is_loopback
from components.host.settings import Settings
from schemas.engine import STATES_MAX


class BridgeSettings(Settings):
    """The seeds' own variables are heard too, those of its gateway before those of its listener.

    ``network_mode`` is the seed's: ``broadcast`` binds every address, ``unicast`` the one of
    ``bind_address``. Whatever it says, both kinds are received there and counted by the packet, so
    that senders can move from one to the other one by one.

    ``trust``: ``required`` believes signed datagrams only; ``mixed`` also plain ones from
    ``mixed_networks`` about ``mixed_engines``; ``legacy`` whatever comes.
    """

    env_aliases: ClassVar[Mapping[str, str]] = {
        "VLLM_UDP_LISTENER_PORT": "udp_port",
        "VLLM_UDP_LISTENER_BIND_ADDRESS": "bind_address",
        "VLLM_UDP_LISTENER_NETWORK_MODE": "network_mode",
        "VLLM_UDP_LISTENER_ENABLE_LOG": "log_states",
        "VLLM_UDP_LISTENER_LOG_FILE": "log_file",
        "VLLM_STATE_GATEWAY_UDP_PORT": "udp_port",
        "VLLM_STATE_GATEWAY_BIND_ADDRESS": "bind_address",
        "VLLM_STATE_GATEWAY_STALE_THRESHOLD": "stale_threshold_ms",
        "VLLM_STATE_GATEWAY_NETWORK_MODE": "network_mode",
        "VLLM_STATE_GATEWAY_ENABLE_LOG": "log_states",
        "VLLM_STATE_GATEWAY_LOG_FILE": "log_file",
        "PROXY_PORT": "ping_port",
        "PREFILL_ADDRS": "prefill_addrs",
        "DECODE_ADDRS": "decode_addrs",
    }

    bind_address: str = "0.0.0.0"  # noqa: S104  (senders are on other hosts)
    #: 0 takes a free port; the heartbeat's ``address`` says which.
    udp_port: int = Field(default=9999, ge=0, le=65535)
    network_mode: Literal["unicast", "broadcast"] = "unicast"
    #: Asked of the kernel, which may give less (net.core.rmem_max).
    receive_buffer_bytes: int = Field(default=16 * 1024 * 1024, ge=4096)
    #: A longer datagram is refused, as the seed's own gateway cuts it off there.
    datagram_bytes_max: int = Field(default=4096, ge=256, le=65_507)
    #: Datagrams read in one turn of the loop, and so the most states of one message; the others
    #: wait in the kernel's buffer.
    turn_max: int = Field(default=256, ge=1, le=STATES_MAX)

    trust: Literal["required", "mixed", "legacy"] = "legacy"
    #: Lines ``KEY_ID HEX`` (at least 32 bytes), mode 0600. Two keys while one is being changed.
    keys_file: str = ""
    mixed_networks: tuple[str, ...] = Field(default=(), max_length=256)
    mixed_engines: tuple[str, ...] = Field(default=(), max_length=4096)
    #: A new life of a signed sender is believed when its clock is no further from ours, and for so
    #: long after the bridge's own start only what was sent since (see ``windows.py``).
    clock_ms_max: int = Field(default=30_000, ge=1000)

    #: Per sending host: a rack of engines behind one address fits, a flood does not.
    source_per_s: float = Field(default=1000.0, gt=0)
    source_burst: int = Field(default=2000, ge=1)
    sources_max: int = Field(default=4096, ge=1)
    #: All senders together.
    total_per_s: float = Field(default=25_000.0, gt=0)
    total_burst: int = Field(default=25_000, ge=1)

    #: An engine counts as active while its last state is no older.
    stale_after_s: float = Field(default=2.0, gt=0)
    #: The seed's name for it, in ms; wins over ``stale_after_s``.
    stale_threshold_ms: int | None = Field(default=None, ge=1, exclude=True)
    purge_after_s: float = Field(default=300.0, gt=0)
    #: How long a timestamp outranks older ones: a sender whose clock was set back is heard again.
    order_ttl_s: float = Field(default=10.0, gt=0)
    engines_max: int = Field(default=4096, ge=1)

    #: The seed's log as well, for tools that read it; JetStream keeps the history anyway.
    log_states: bool = False
    log_file: str = "engine_states.jsonl"
    log_bytes_max: int = Field(default=64 * 1024 * 1024, ge=4096)
    #: Older files that are kept beside the one that is written.
    log_files_max: int = Field(default=4, ge=0, le=1000)

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

    @property
    def address(self) -> str:
        """What is bound: every address for broadcasts, by the seed's rule."""
        return "0.0.0.0" if self.network_mode == "broadcast" else self.bind_address  # noqa: S104

    @property
    def is_loopback(self) -> bool:
        """Is it this machine alone that can send?"""
        return is_loopback(self.address)

    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """``mixed_networks``, parsed."""
        return tuple(map(ipaddress.ip_network, self.mixed_networks))

    @model_validator(mode="before")
    @classmethod
    def _seed_s_threshold(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("stale_threshold_ms") is not None:
            milliseconds = float(values["stale_threshold_ms"])
            return {**values, "stale_after_s": milliseconds / 1000}
        return values

    @field_validator("mixed_networks")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)  # raises ValueError, which says what is wrong
        return networks

    @model_validator(mode="after")
    def _keys_for_trust(self) -> Self:
        if self.trust == "required" and not self.keys_file:
            raise ValueError("trust = required needs keys_file: else nobody is believed")
        return self

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
