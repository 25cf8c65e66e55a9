"""How an engine's KV connector and its agent are told of each other."""

from typing import Any

from components.host.errors import CannotStart
from components.host.host import Host
from components.worker.settings import WorkerSettings
from components.worker.vllm.connector.config import (
    BadConnectorConfig,
    ConnectorConfig,
    LinkKind,
    transfer_arguments,
)
from components.worker.vllm.connector.exchange import ConnectorExchange
from components.worker.vllm.handoff import Exchange, Relay
from components.worker.vllm.loading import is_for_cpus


def wired(host: Host, settings: WorkerSettings) -> tuple[dict[str, Any], Exchange]:
    """The arguments of vLLM's ``KVTransferConfig`` (empty: none), and the agent's side of them.

    Raises ``CannotStart`` for settings that the connector refuses.
    """
    if settings.hands_over_by != "switchyard":
        return settings.kv_transfer_config(f"{host.instance}-{host.epoch}"), Relay()
    config = connector_config(host, settings)
    ranks = int(settings.engine_args.get("tensor_parallel_size", 1))
    exchange = ConnectorExchange(host.bus, config, ranks=ranks, policy=settings.fallback)
    # Always both: the role may change while the engine runs.
    return transfer_arguments(config, policy=settings.fallback, role="kv_both"), exchange


def connector_config(host: Host, settings: WorkerSettings) -> ConnectorConfig:
    """What all ranks of the engine are told. Raises ``CannotStart``."""
    own = {
        "worker": host.instance,
        "epoch": host.epoch,
        "nats_url": host.settings.nats_url,
        "nats_key_file": settings.connector_key_file,
        "nats_key_shared": host.settings.nats_key_shared,
        "subject_prefix": host.settings.subject_prefix,
        "link": _link(settings),
        # The agent frees what it does not renew; this is for the day on which it cannot say so.
        "lease_ms": settings.hold_ms_max,
        "pull_timeout_ms": settings.ready_wait_ms,
    }
    try:
        return ConnectorConfig.of({**own, **settings.connector_args})
    except BadConnectorConfig as error:
        raise CannotStart(f"worker.connector_args: {error}") from error


def _link(settings: WorkerSettings) -> LinkKind:
    if settings.link != "auto":
        return settings.link
    return "gloo" if is_for_cpus() else "nccl"
