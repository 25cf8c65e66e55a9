"""What a connector must be told, and how its agent tells it. No vLLM needed here.

    KVTransferConfig(**transfer_arguments(config, policy="recompute"))     for the engine
    prefill_params("prefill-0.19f8.req-7.1", lease_ms=20_000)              for a prompt to hand over
    params of P's last output, as they came                                for the one that decodes

To free what P holds before its lease ends, publish ``ReleaseKv`` to each of ``connector_names``;
it may also come before P has finished the prompt. ``KvMoved`` reports, per rank, how it ended.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

MODULE: Final = "components.worker.vllm.connector.connector"
CLASS: Final = "SwitchyardConnector"

MIB: Final = 1024 * 1024

#: Settings whose 0 means that it is not done at all.
_MAY_BE_OFF: Final = frozenset({"host_staging_bytes", "idle_wait_ms"})

LoadFailurePolicy = Literal["recompute", "fail"]
LinkKind = Literal["gloo", "nccl"]


class BadConnectorConfig(ValueError):
    """The engine's KV transfer settings do not fit: the message says which."""


def connector_name(worker: str, rank: int) -> str:
    """A rank's name on the bus."""
    return f"{worker}-engine-{rank}"


def connector_names(worker: str, ranks: int) -> tuple[str, ...]:
    return tuple(connector_name(worker, rank) for rank in range(ranks))


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """All ranks and the scheduler of one engine get the same.

    ``worker`` and ``epoch`` are the agent's: a restarted engine must get a higher epoch.
    ``nats_key_file`` may contain ``{rank}``; ``nats_key_shared``: it is the key of all connectors.
    ``lease_ms`` is how long P holds blocks for somebody
    at most; requests may ask for less. A pull has ``pull_timeout_ms`` from the moment D has blocks
    for it; within that, ``open_timeout_ms`` for a new link and ``ask_timeout_ms`` for P's word.
    ``staging_bytes`` is one of the two buffers that each end of a link has. ``host_staging_bytes``
    of host memory per rank take what is pulled for requests that have no blocks yet (0: nothing
    is). ``idle_wait_ms`` is how long a step without work for the model waits for a pull to end.
    """

    worker: str
    epoch: int
    nats_url: str
    nats_key_file: str = ""
    nats_key_shared: bool = False
    subject_prefix: str = "yard"
    link: LinkKind = "gloo"
    link_address: str = "127.0.0.1"
    link_interface: str = ""
    lease_ms: int = 60_000
    pull_timeout_ms: int = 10_000
    open_timeout_ms: int = 3_000
    ask_timeout_ms: int = 1_500
    early_wait_ms: int = 1_000
    cancel_grace_ms: int = 50
    link_idle_ms: int = 300_000
    link_tries_max: int = 3
    staging_bytes: int = 16 * MIB
    host_staging_bytes: int = 256 * MIB
    idle_wait_ms: int = 1
    transfers_max: int = 4_096
    peers_max: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_OFF else 1
            if field.type is int and (type(value) is not int or value < least):
                raise BadConnectorConfig(
                    f"{field.name} must be a whole number of at least {least}: {value!r}"
                )
        if not self.worker or not self.nats_url:
            raise BadConnectorConfig("worker and nats_url must be given")
        if self.link not in {"gloo", "nccl"}:
            raise BadConnectorConfig(f"link must be gloo or nccl, not {self.link!r}")
        if self.early_wait_ms >= self.ask_timeout_ms:
            raise BadConnectorConfig("early_wait_ms must be below ask_timeout_ms")

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> "ConnectorConfig":
        """From vLLM's ``kv_connector_extra_config``; raises ``BadConnectorConfig``."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(extra) - known)
        if unknown:
            raise BadConnectorConfig(f"unknown settings: {', '.join(unknown)}")
        try:
            return cls(**extra)
        except TypeError as error:
            raise BadConnectorConfig(str(error)) from error


def transfer_arguments(
    config: ConnectorConfig,
    *,
    policy: LoadFailurePolicy = "recompute",
    role: Literal["kv_producer", "kv_consumer", "kv_both"] = "kv_both",
) -> dict[str, Any]:
    """The arguments of vLLM's ``KVTransferConfig``."""
    return {
        "kv_connector": CLASS,
        "kv_connector_module_path": MODULE,
        "kv_role": role,
        "engine_id": f"{config.worker}.{config.epoch:x}",
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": asdict(config),
    }


def prefill_params(transfer_id: str, lease_ms: int | None = None) -> dict[str, str | int]:
    """``kv_transfer_params`` of a request whose prompt is to be handed over."""
    params: dict[str, str | int] = {"do_remote_decode": 1, "transfer_id": transfer_id}
    return params if lease_ms is None else {**params, "lease_ms": lease_ms}


@dataclass(frozen=True, slots=True)
class Held:
    """What P says of what it holds: its ``kv_transfer_params``, which D gets unread.

    ``layout`` and ``ranks`` let D see whether the blocks would fit into its own cache.
    """

    transfer_id: str
    worker: str
    epoch: int
    tokens: int
    blocks: int
    layout: str
    ranks: int

    def params(self) -> dict[str, str | int]:
        return {"do_remote_prefill": 1, "do_remote_decode": 0, **asdict(self)}

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Held":
        """Raises ``ValueError`` when anything is missing or of the wrong type."""
        values: dict[str, Any] = {field.name: params.get(field.name) for field in fields(cls)}
        for field in fields(cls):
            if type(values[field.name]) is not field.type:
                raise ValueError(f"kv_transfer_params: {field.name} is {values[field.name]!r}")
        held = cls(**values)
        if held.tokens < 1 or held.blocks < 1 or held.ranks < 1:
            raise ValueError("kv_transfer_params: tokens, blocks and ranks must be above 0")
        return held
