"""D's end of a link: fetches from one holder, into the cache or into host memory.

A pull asks the holder over NATS, and then takes what comes over the link. Its request is named as
soon as the last block is in place; the receipt that frees the holder's blocks follows.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from bus import subjects
from bus.errors import BusError, NoResponders
from components.worker.vllm.connector.blocks import HostCopy
from components.worker.vllm.connector.link import (
    D_END,
    Link,
    LinkFailed,
    LinkUnavailable,
    Pending,
    Tensor,
)
from components.worker.vllm.connector.link_thread import GOT, HERE, LinkThread
from components.worker.vllm.connector.orders import (
    BeginPull,
    BeginStage,
    PullOrder,
    SayRelease,
)
from schemas.codes import ReleaseReason
from schemas.links import PullKv, PullKvReply

if TYPE_CHECKING:
    from components.worker.vllm.connector.moving import RankMover

log: Final = logging.getLogger("switchyard.connector")

#: A request that has blocks goes before one that has none.
PULL_URGENCY: Final = 0
STAGE_URGENCY: Final = 1

_BUSY_PAUSE_S: Final = 0.005
_AWAY_PAUSE_S: Final = 0.05


class CannotPull(Exception):
    """The holder will not send this, or cannot be reached."""

    def __init__(self, reason: ReleaseReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: ReleaseReason = reason


class _Errand(Protocol):
    """What is fetched, and where it goes."""

    @property
    def order(self) -> PullOrder: ...

    def is_wanted(self) -> bool: ...

    def on_link(self, link: str) -> None: ...

    def take(self, blocks: Sequence[int], data: Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class _IntoBlocks:
    mover: "RankMover"
    order: PullOrder

    def is_wanted(self) -> bool:
        return self.mover.may_pull_again(self.order)

    def on_link(self, link: str) -> None:
        self.mover.on_link(self.order, link)

    def take(self, blocks: Sequence[int], data: Tensor) -> None:
        self.mover.kv.scatter(blocks, data)


@dataclass(frozen=True, slots=True)
class _IntoHost:
    mover: "RankMover"
    order: PullOrder
    copy: HostCopy

    def is_wanted(self) -> bool:
        return self.mover.may_stage_again(self.order)

    def on_link(self, link: str) -> None:
        pass  # when nobody wants it any more, the holder is released, and breaks the link

    def take(self, blocks: Sequence[int], data: Tensor) -> None:
        self.copy.keep(blocks[0], len(blocks), data)


class Puller(LinkThread):
    """Its jobs are pulls and stages from one holder."""

    def __init__(self, mover: "RankMover", holder: str) -> None:
        super().__init__(mover, holder, "pulls from")

    def _work(self, job: BeginPull | BeginStage) -> None:
        if isinstance(job, BeginPull):
            self._pull(job.order, job.deadline_s)
        else:
            self._stage(job.order)

    def _pull(self, order: PullOrder, deadline_s: float) -> None:
        mover = self._mover
        if not mover.begin_pull(order):
            return
        copy = mover.staged_copy(order)
        try:
            with self._failures(order):
                self._lane.after(mover.fence_of(order.request_id))
                if copy is None:
                    self._fetch(_IntoBlocks(mover, order), deadline_s)
                else:
                    self._restore(order, copy)
        except CannotPull as error:
            mover.pull_failed(order, error.reason, str(error))
            return
        mover.pulled(order)
        if copy is None:
            self._confirm(order)

    def _stage(self, order: PullOrder) -> None:
        mover = self._mover
        if not mover.begin_stage(order):
            return
        deadline_s = time.monotonic() + mover.config.pull_timeout_ms / 1e3
        try:
            with self._failures(order):
                copy = HostCopy(mover.kv, len(order.blocks))
                self._fetch(_IntoHost(mover, order, copy), deadline_s)
        except CannotPull as error:
            log.info("%s: %s not staged: %s", mover.name, order.transfer_id, error)
            mover.stage_failed(order)
            return
        mover.staged(order, copy)
        self._confirm(order)

    @contextlib.contextmanager
    def _failures(self, order: PullOrder) -> Iterator[None]:
        """Whatever goes wrong becomes ``CannotPull``; a link that may be out of step is dropped."""
        reason: ReleaseReason = "transfer_failed"
        try:
            yield
        except CannotPull:
            raise
        except NoResponders:
            reason, detail = "peer_lost", f"{self._peer} is not there"
        except (LinkFailed, LinkUnavailable, BusError) as error:
            detail = str(error)
        except Exception as error:
            # A bug: the request must be named all the same, or it would wait for ever.
            log.exception("%s: %s not pulled", self._mover.name, order.transfer_id)
            detail = repr(error)
        else:
            return
        self._drop()
        raise CannotPull(reason, detail)

    def _restore(self, order: PullOrder, copy: HostCopy) -> None:
        """From host memory; of what is there the tail, when the front has been found here."""
        for start, count, data in copy.chunks():
            skip = max(0, order.first_block - start)
            if skip < count:
                place = start + skip - order.first_block
                self._mover.kv.scatter(order.blocks[place : place + count - skip], data, skip)
        self._lane.finish()

    def _fetch(self, errand: _Errand, deadline_s: float) -> None:
        """Try until it is here or there is no point."""
        for tries_left in reversed(range(self._mover.config.link_tries_max)):
            chunk_blocks = self._ask(errand, deadline_s)
            try:
                return self._transfer(errand, chunk_blocks, deadline_s)
            except LinkFailed as error:
                self._drop()
                if not tries_left or time.monotonic() >= deadline_s or not errand.is_wanted():
                    raise
                transfer_id = errand.order.transfer_id
                log.info("%s: %s again: %s", self._mover.name, transfer_id, error)
        raise AssertionError("a try either returns or raises")

    def _ask(self, errand: _Errand, deadline_s: float) -> int:
        """Return when the holder is about to send, with the size of its chunks."""
        mover = self._mover
        while True:
            if not self._link_name:
                self._link_name = mover.new_link_name(self._peer)
            errand.on_link(self._link_name)
            wait_s = min(mover.config.ask_timeout_ms / 1e3, deadline_s - time.monotonic())
            if wait_s <= 0 or not errand.is_wanted():
                raise CannotPull("lease_expired", "no time left to ask")
            subject = subjects.pull_kv(self._peer)
            try:
                reply = mover.control.ask(subject, self._pull_of(errand), PullKvReply, wait_s)
            except NoResponders:
                if not mover.control.is_just_back:
                    raise
                time.sleep(_AWAY_PAUSE_S)
                continue
            match reply.refused:
                case None:
                    return reply.chunk_blocks
                case "stale_link":
                    self._drop()
                case "busy":
                    time.sleep(_BUSY_PAUSE_S)
                case _:
                    raise CannotPull("refused", f"{self._peer}: {reply.refused}")

    def _pull_of(self, errand: _Errand) -> PullKv:
        mover, order = self._mover, errand.order
        return PullKv(
            transfer_id=order.transfer_id,
            sender=mover.name,
            sender_epoch=mover.config.epoch,
            epoch=order.epoch,
            link=self._link_name,
            first_block=order.first_block,
            blocks=len(order.blocks),
            block_bytes=mover.kv.block_bytes,
            chunk_blocks=max(1, mover.config.staging_bytes // mover.kv.block_bytes),
        )

    def _transfer(self, errand: _Errand, chunk_blocks: int, deadline_s: float) -> None:
        order = errand.order
        if self._link is None:
            self._link = self._mover.open_link(self._link_name, self._peer, D_END, deadline_s)
        link: Link = self._link
        chunks = self._chunks(order.blocks, chunk_blocks)
        pending: list[Pending] = [link.receive(chunks[0].message, deadline_s)]
        for place, chunk in enumerate(chunks):
            if place + 1 < len(chunks):
                pending.append(link.receive(chunks[place + 1].message, deadline_s))
            pending[place].wait()
            if place == 0:
                self._check_head(chunk.message, HERE, len(order.blocks), order.transfer_id)
            errand.take(chunk.blocks, chunk.data)
            self._lane.finish()

    def _confirm(self, order: PullOrder) -> None:
        """The holder may free its blocks. All is here: a link that breaks now does no harm."""
        link, mover = self._link, self._mover
        assert link is not None
        receipt = self._head(GOT, len(order.blocks), order.transfer_id).to(mover.kv.device)
        deadline_s = time.monotonic() + mover.config.ask_timeout_ms / 1e3
        try:
            link.send(receipt, deadline_s).wait()
        except LinkFailed:
            mover.say(SayRelease(order.transfer_id, order.source, order.epoch, "consumed"))
            self._drop()
