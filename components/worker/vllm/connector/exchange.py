"""The agent's side of our connector: what its engine asks of it, and what the ranks report.

The agent names the transfers (request and attempt, under its own name and epoch), so it can free
one at any time: while the prompt is computed, while it is held, or when nobody knows which.

A pull is D's doing and may be over before P's agent has heard that D was granted it: what the ranks
say early waits here until ``send_kv`` asks for it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bus import subjects
from bus.bus import Bus, Received, Subscription
from components.worker.engine import (
    EngineEvent,
    Job,
    JobKey,
    KvArrived,
    KvFailed,
    KvSource,
    Moved,
    MoveFailed,
    Params,
)
from components.worker.vllm.connector.config import (
    ConnectorConfig,
    LoadFailurePolicy,
    connector_names,
    prefill_params,
)
from schemas.codes import ReleaseReason
from schemas.links import KvMoved, ReleaseKv

TRANSFERS_MAX: Final = 16_384


@dataclass(slots=True)
class _Transfer:
    """What the ranks have said of it, and whether somebody waits for that."""

    key: JobKey
    asked_for: bool = False
    words: list[KvMoved] = field(default_factory=list)


class ConnectorExchange:
    """For an engine of ``ranks`` ranks whose connector runs with ``config`` and ``policy``.

    With ``recompute`` the engine computes by itself what it cannot load: that counts as arrived,
    with 0 bytes, because the job goes on. With ``fail`` it is ``KvFailed``.
    """

    tells_arrival = True

    def __init__(
        self,
        bus: Bus,
        config: ConnectorConfig,
        *,
        ranks: int = 1,
        policy: LoadFailurePolicy = "recompute",
    ) -> None:
        self._bus = bus
        self._config = config
        self._connectors = connector_names(config.worker, ranks)
        self._policy = policy
        self._report: Callable[[EngineEvent], None] = lambda _event: None
        self._subscription: Subscription | None = None
        self._sent: OrderedDict[str, _Transfer] = OrderedDict()
        self._received: OrderedDict[str, _Transfer] = OrderedDict()

    async def start(self, report: Callable[[EngineEvent], None]) -> None:
        self._report = report
        subject = subjects.kv_moved(self._config.worker)
        self._subscription = await self._bus.subscribe(subject, KvMoved, self._on_moved)

    async def stop(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    def prefill_params(self, job: Job) -> Mapping[str, Any]:
        transfer_id = self._transfer_id(job.key)
        _remember(self._sent, transfer_id, _Transfer(job.key))
        return prefill_params(transfer_id, self._config.lease_ms)

    def offer_params(self, job: Job, returned: Mapping[str, Any] | None) -> Params:
        return {} if returned is None else dict(returned)

    def decode_params(self, job: Job, source: KvSource) -> Mapping[str, Any]:
        transfer_id = source.params.get("transfer_id")
        if isinstance(transfer_id, str):
            _remember(self._received, transfer_id, _Transfer(job.key, asked_for=True))
        return dict(source.params)

    def send_kv(self, key: JobKey, peer: str) -> None:
        """Nothing to do: the other side pulls, and the ranks say when it has."""
        transfer_id = self._transfer_id(key)
        transfer = self._sent.get(transfer_id)
        if transfer is not None:
            transfer.asked_for = True
            self._tell_if_over(self._sent, transfer_id)

    def stop_sending(self, key: JobKey) -> None:
        self._free(key, "cancelled")

    def release(self, key: JobKey) -> None:
        self._free(key, "consumed")

    def _free(self, key: JobKey, reason: ReleaseReason) -> None:
        transfer_id = self._transfer_id(key)
        self._sent.pop(transfer_id, None)
        release = ReleaseKv(transfer_id=transfer_id, epoch=self._config.epoch, reason=reason)
        for connector in self._connectors:
            self._bus.publish(subjects.release_kv(connector), release)

    def _transfer_id(self, key: JobKey) -> str:
        return f"{self._config.worker}.{self._config.epoch:x}.{key[0]}.{key[1]}"

    def _on_moved(self, received: Received[KvMoved]) -> None:
        moved = received.message
        table = self._sent if moved.side == "sent" else self._received
        transfer = table.get(moved.transfer_id)
        if transfer is None or any(word.rank == moved.rank for word in transfer.words):
            return
        transfer.words.append(moved)
        self._tell_if_over(table, moved.transfer_id)

    def _tell_if_over(self, table: OrderedDict[str, _Transfer], transfer_id: str) -> None:
        """It has ended when all ranks have spoken."""
        transfer = table[transfer_id]
        if transfer.asked_for and len(transfer.words) == len(self._connectors):
            del table[transfer_id]
            # The engine must not hear of it from inside a call to it.
            asyncio.get_running_loop().call_soon(self._report, self._event(transfer))

    def _event(self, transfer: _Transfer) -> EngineEvent:
        key, words = transfer.key, transfer.words
        bytes_moved = sum(word.bytes_moved for word in words)
        failed = next((word for word in words if word.reason != "consumed"), None)
        if words[0].side == "sent":
            if failed is not None:
                return MoveFailed(key, f"not pulled: {failed.reason}")
            return Moved(key, bytes_moved)
        if failed is None:
            return KvArrived(key, bytes_moved)
        if self._policy == "recompute":
            return KvArrived(key, 0)
        return KvFailed(key, failed.detail or failed.reason)


def _remember(table: OrderedDict[str, _Transfer], transfer_id: str, transfer: _Transfer) -> None:
    table[transfer_id] = transfer
    while len(table) > TRANSFERS_MAX:
        table.popitem(last=False)
