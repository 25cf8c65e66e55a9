"""The class that vLLM loads; every method only hands over to one of the two sides.

vLLM makes one instance for the scheduler and one per rank, in different processes, from the same
configuration. It is imported by name in each of them.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # type: ignore[import-not-found]
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.parallel_state import (  # type: ignore[import-not-found]
    get_tensor_model_parallel_rank,
)

from components.worker.vllm.connector.blocks import KvBlocks
from components.worker.vllm.connector.config import BadConnectorConfig, ConnectorConfig
from components.worker.vllm.connector.link import Tensor, opener
from components.worker.vllm.connector.moving import RankMover
from components.worker.vllm.connector.orders import Orders
from components.worker.vllm.connector.scheduling import HandoffScheduling, Request

#: A pull needs the interpreter about ten times, for microseconds each. By Python's own setting the
#: model's thread may keep each of them waiting for 5 ms.
SWITCH_S: Final = 0.0003


@dataclass
class OrdersMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """The orders of one step, on their way to every rank."""

    orders: Orders = field(default_factory=Orders)


class SwitchyardConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """KV handed over between engines, by pull, with control over NATS."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._config = ConnectorConfig.of(vllm_config.kv_transfer_config.kv_connector_extra_config)
        parallel = vllm_config.parallel_config
        if parallel.pipeline_parallel_size != 1:
            raise BadConnectorConfig("pipeline parallelism is not supported: set it to 1")
        self._ranks: int = parallel.tensor_parallel_size
        self._scheduling: HandoffScheduling | None = None
        self._mover: RankMover | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduling = HandoffScheduling(
                self._config,
                block_tokens=vllm_config.cache_config.block_size,
                ranks=self._ranks,
                layout=layout_of(vllm_config, kv_cache_config),
            )

    # The scheduler's side

    def on_new_request(self, request: Request) -> None:
        assert self._scheduling is not None
        self._scheduling.on_new(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        assert self._scheduling is not None
        tokens = self._scheduling.tokens_to_load(request, num_computed_tokens)
        return tokens, tokens > 0

    def update_state_after_alloc(
        self, request: Request, blocks: Any, num_external_tokens: int
    ) -> None:
        assert self._scheduling is not None
        ids = blocks.get_block_ids()[0] if num_external_tokens else ()
        self._scheduling.on_blocks(request, ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> OrdersMetadata:
        assert self._scheduling is not None
        idle = scheduler_output.total_num_scheduled_tokens == 0
        return OrdersMetadata(self._scheduling.take_orders(idle=idle))

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduling is not None
        return self._scheduling.on_finished(request, block_ids)

    def update_connector_output(self, connector_output: Any) -> None:
        assert self._scheduling is not None
        received: Iterable[str] = connector_output.finished_recving or ()
        self._scheduling.on_received(received)

    # A rank's side

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        kv = KvBlocks(list(kv_caches.values()))
        rank = get_tensor_model_parallel_rank()
        sys.setswitchinterval(SWITCH_S)
        self._mover = self.make_mover(rank, kv)
        self._mover.start()

    def make_mover(self, rank: int, kv: KvBlocks) -> RankMover:
        """For tests that watch or disturb it."""
        open_link = opener(self._config.link, kv.device)
        return RankMover(self._config, rank, self._ranks, kv, open_link)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, OrdersMetadata)
        if self._mover is not None:
            self._mover.apply(metadata.orders)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        results = self.get_transfer_results(finished_req_ids)
        return results.finished_sending, results.finished_recving

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._mover is None:
            return KVConnectorTransferResults()
        finished = self._mover.finished()
        return KVConnectorTransferResults(
            finished_sending=finished.sent,
            finished_recving=finished.received,
            failed_recving=finished.failed,
        )

    def wait_for_layer_load(self, layer_name: str) -> None:
        return  # whole requests are loaded between steps

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        return  # blocks stay pinned and are read later

    def wait_for_save(self) -> None:
        return

    def shutdown(self) -> None:
        if self._mover is not None:
            self._mover.stop()


def layout_of(vllm_config: Any, kv_cache_config: Any) -> str:
    """A digest of what decides how a block of this engine reads: equal on engines that fit."""
    model = vllm_config.model_config
    described = {
        "model": {
            key: value
            for key, value in model.hf_config.to_dict().items()
            if key not in {"_name_or_path", "transformers_version"}
        },
        "block_tokens": vllm_config.cache_config.block_size,
        "cache": [
            [list(group.layer_names), str(group.kv_cache_spec)]
            for group in kv_cache_config.kv_cache_groups
        ],
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
