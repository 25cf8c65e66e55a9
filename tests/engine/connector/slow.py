"""A holder that is slow at each chunk, so that a test can act in mid-transfer."""

import time

from components.worker.vllm.connector import connector
from components.worker.vllm.connector.blocks import KvBlocks

CHUNK_S = 0.3


class SlowBlocks(KvBlocks):
    def gather(self, ids, out):
        time.sleep(CHUNK_S)
        super().gather(ids, out)


class SwitchyardConnector(connector.SwitchyardConnector):
    def make_mover(self, rank, kv):
        return super().make_mover(rank, SlowBlocks(kv.layers))
