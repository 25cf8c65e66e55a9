"""The control: a connector that replaces what it receives by noise."""

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector import connector
from components.worker.vllm.connector.blocks import KvBlocks


class NoisyBlocks(KvBlocks):
    def scatter(self, ids, data, skip=0):
        noise = torch.randn(data.numel() // 4, dtype=torch.float32)
        super().scatter(ids, noise.view(torch.uint8), skip)


class SwitchyardConnector(connector.SwitchyardConnector):
    def make_mover(self, rank, kv):
        return super().make_mover(rank, NoisyBlocks(kv.layers))
