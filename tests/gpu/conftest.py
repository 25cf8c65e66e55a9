"""Which GPU each end has, and what two ends need to share one.

NCCL refuses two ranks of one communicator on one GPU, unless they seem to be on two hosts. With a
host id of its own for each end, they speak over sockets on loopback: all of a link is then real but
its speed. With two GPUs nothing is pretended.
"""

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.engine.connector.ends import Ends  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
GPUS = torch.cuda.device_count()
DEVICES = ("cuda:0", "cuda:1" if GPUS > 1 else "cuda:0")
APART = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket"}
ENVIRONMENTS = tuple({} if GPUS > 1 else {**APART, "NCCL_HOSTID": f"end-{end}"} for end in (0, 1))


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(120))
            for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))


@pytest.fixture
async def run(nats_server):
    """``await run("killed")``: what P's end and D's end of an NCCL link saw."""
    pytest.importorskip("vllm.distributed.device_communicators.pynccl")
    ends = Ends(nats_server, "nccl", DEVICES, ENVIRONMENTS)
    yield ends.run
    await ends.stop()
