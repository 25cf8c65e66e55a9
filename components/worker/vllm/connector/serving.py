"""P's end of a link: sends to one puller what he asks for, in his order."""

import logging
import time
from typing import TYPE_CHECKING, Final

from components.worker.vllm.connector.link import (
    P_END,
    Link,
    LinkFailed,
    LinkUnavailable,
    Pending,
)
from components.worker.vllm.connector.link_thread import GOT, HERE, LinkThread
from components.worker.vllm.connector.orders import Answer
from schemas.links import PullKv

if TYPE_CHECKING:
    from components.worker.vllm.connector.moving import RankMover

log: Final = logging.getLogger("switchyard.connector")


class Server(LinkThread):
    """Its jobs are accepted pulls."""

    def __init__(self, mover: "RankMover", puller: str) -> None:
        super().__init__(mover, puller, "serves")

    def _work(self, job: Answer) -> None:
        try:
            self._serve(job.pull, job.chunk_blocks)
        except (LinkFailed, LinkUnavailable) as error:
            log.warning("%s: %s not sent: %s", self._mover.name, job.pull.transfer_id, error)
            self._drop()
        except Exception:
            # A bug, but no reason to keep blocks pinned: the puller tries again or gives up.
            log.exception("%s: %s not sent", self._mover.name, job.pull.transfer_id)
            self._drop()

    def _serve(self, pull: PullKv, chunk_blocks: int) -> None:
        mover = self._mover
        deadline_s = time.monotonic() + mover.config.pull_timeout_ms / 1e3
        link = self._link_for(pull.link, deadline_s)
        blocks = mover.begin_send(pull)
        if blocks is None:  # the puller waits for bytes: only the link's end can tell him
            raise LinkFailed("it is not held any more")
        self._lane.after(mover.fence_of(pull.transfer_id))
        chunks = self._chunks(blocks, chunk_blocks)
        self._write_head(chunks[0].message, HERE, len(blocks), pull.transfer_id)
        pending: list[Pending] = []
        for place, chunk in enumerate(chunks):
            mover.kv.gather(chunk.blocks, chunk.data)
            pending.append(link.send(chunk.message, deadline_s))
            if place:
                pending[place - 1].wait()  # the other buffer is free again
        pending[-1].wait()
        receipt = mover.kv.bytes(self._head(GOT, 0, "").numel())
        link.receive(receipt, deadline_s).wait()
        self._check_head(receipt, GOT, len(blocks), pull.transfer_id)
        mover.sent(pull)

    def _link_for(self, name: str, deadline_s: float) -> Link:
        if self._link is not None and self._link_name == name:
            return self._link
        self._drop()
        if not self._mover.is_current(name):
            raise LinkFailed(f"link {name}: was given up")
        self._link_name = name  # so that it counts as closed if it cannot be opened
        self._link = self._mover.open_link(name, self._peer, P_END, deadline_s)
        return self._link
