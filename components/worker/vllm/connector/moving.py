"""A rank's side: threads that pull and serve, the bus, and the two tables of ``core``.

How to think about it. Four kinds of thread meet here:

    the model's   brings orders (``apply``) and takes what may be named (``finished``), each step
    the bus's     brings pulls and releases of others
    pullers       one per holder: asks, receives, writes into this cache
    servers       one per puller: reads this cache, sends

Each link is used by one thread, so a slow peer delays nobody but itself. All decide through the
tables, under one lock that is never held while anything waits; what the tables want is done after
it is given back.

A serving thread and a pulling thread speak so over their link, once the pull is accepted:

    P: head (state, blocks)   P: chunks ...   D: receipt      a receipt frees P's blocks
"""

import itertools
import logging
import queue
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch  # type: ignore[import-not-found]
import xxhash

from bus import subjects
from bus.bus import Received
from bus.errors import BusError, NoResponders
from components.worker.vllm.connector.blocks import KvBlocks
from components.worker.vllm.connector.config import ConnectorConfig, connector_name
from components.worker.vllm.connector.control import Control
from components.worker.vllm.connector.core import (
    Answer,
    BeginPull,
    BreakLink,
    Finished,
    Holdings,
    HoldingsOutcome,
    NameReceived,
    NameSent,
    Orders,
    PullOrder,
    Pulls,
    PullsOutcome,
    SayRelease,
)
from components.worker.vllm.connector.link import (
    D_END,
    P_END,
    End,
    Link,
    LinkFailed,
    LinkPlace,
    LinkUnavailable,
    Opener,
    Pending,
    Tensor,
)
from components.worker.vllm.connector.rendezvous import link_name
from schemas.codes import ReleaseReason
from schemas.links import KvMoved, PullKv, PullKvReply, ReleaseKv

log: Final = logging.getLogger("switchyard.connector")

#: Beside each other on a link: state, blocks, and a digest of the transfer's name.
_HEAD: Final = struct.Struct("<4q")
_MAGIC: Final = 0x53574B56
_HERE, _GONE, _GOT = 1, 2, 3
_BUSY_PAUSE_S: Final = 0.005
_AWAY_PAUSE_S: Final = 0.05
_JOIN_S: Final = 5.0


def _digest(transfer_id: str) -> int:
    """63 bits that tell transfers apart."""
    return xxhash.xxh3_64_intdigest(transfer_id.encode()) >> 1


class CannotPull(Exception):
    """The holder will not send this, or cannot be reached."""

    def __init__(self, reason: ReleaseReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: ReleaseReason = reason


class RankMover:
    """See the top of the file. ``rank`` of ``ranks`` in its engine; pulls only from equal ranks."""

    def __init__(
        self, config: ConnectorConfig, rank: int, ranks: int, kv: KvBlocks, opener: Opener
    ) -> None:
        self.config = config
        self.kv = kv
        self.rank = rank
        self.ranks = ranks
        self.name = connector_name(config.worker, rank)
        self._opener = opener
        key_file = config.nats_key_file.replace("{rank}", str(rank))
        self.control = Control(
            self.name,
            config.epoch,
            config.nats_url,
            key_file=Path(key_file) if key_file else None,
            key_shared=config.nats_key_shared,
            prefix=config.subject_prefix,
        )
        self._lock = threading.Lock()
        self._holdings = Holdings(config, kv.block_bytes)
        self._pulls = Pulls(config)
        self._finished = Finished()
        self._questions: dict[int, Received[PullKv]] = {}
        self._tickets = itertools.count(1)
        self._link_numbers = itertools.count(1)
        self._fences: dict[str, Any] = {}
        self._servers: dict[str, _Server] = {}
        self._pullers: dict[tuple[str, int], _Puller] = {}
        self._links: dict[str, Link] = {}
        self._stopped = False

    # The model's thread

    def start(self) -> None:
        """Connect; raises ``NotConnected``."""
        self.control.start(self._on_pull, self._on_release)

    def apply(self, orders: Orders) -> None:
        """Take the orders of a step. Never waits."""
        now_s = time.monotonic()
        fence = self.kv.fence() if orders.pins or orders.pulls else None
        outcomes: list[HoldingsOutcome | PullsOutcome] = []
        with self._lock:
            for pin in orders.pins:
                self._fences[pin.transfer_id] = fence
                outcomes += self._holdings.pin(pin, now_s)
            for order in orders.pulls:
                self._fences[order.request_id] = fence
                outcomes += self._pulls.order(order, now_s)
            for request_id in orders.cancels:
                outcomes += self._pulls.cancel(request_id, now_s)
        self._do(outcomes)
        self._do(orders.releases)

    def finished(self) -> Finished:
        """What has ended since the last call; also the clock of leases and deadlines."""
        now_s = time.monotonic()
        with self._lock:
            outcomes = [*self._holdings.on_tick(now_s), *self._pulls.on_tick(now_s)]
        self._do(outcomes)
        with self._lock:
            finished, self._finished = self._finished, Finished()
        return finished

    @property
    def pinned_blocks(self) -> int:
        with self._lock:
            return self._holdings.blocks

    def stop(self) -> None:
        """Close all links, end all threads, disconnect. Harmless twice."""
        with self._lock:
            self._stopped = True
            self._holdings.closing = True
            threads = [*self._servers.values(), *self._pullers.values()]
            links = list(self._links.values())
        for link in links:
            link.close()
        for thread in threads:
            thread.end()
        for thread in threads:
            thread.join(_JOIN_S)
        self.control.stop()

    # The bus's thread

    def _on_pull(self, received: Received[PullKv]) -> None:
        with self._lock:
            ticket = next(self._tickets)
            self._questions[ticket] = received
            outcomes = self._holdings.on_pull(ticket, received.message, time.monotonic())
        self._do(outcomes)

    def _on_release(self, release: ReleaseKv) -> None:
        with self._lock:
            outcomes = self._holdings.release(
                release.transfer_id, release.epoch, release.reason, time.monotonic()
            )
        self._do(outcomes)

    # Pullers and servers

    def begin_send(self, pull: PullKv) -> tuple[int, ...] | None:
        with self._lock:
            return self._holdings.begin(pull)

    def is_current(self, link: str) -> bool:
        with self._lock:
            return self._holdings.is_current(link)

    def sent(self, pull: PullKv) -> None:
        with self._lock:
            outcomes = self._holdings.on_sent(pull, time.monotonic())
        self._do(outcomes)

    def begin_pull(self, order: PullOrder) -> bool:
        with self._lock:
            return not self._stopped and self._pulls.begin(order.request_id)

    def pulled(self, order: PullOrder, bytes_moved: int) -> None:
        with self._lock:
            outcomes = self._pulls.on_done(order.request_id, bytes_moved, time.monotonic())
        self._do(outcomes)

    def pull_failed(self, order: PullOrder, reason: ReleaseReason, detail: str) -> None:
        with self._lock:
            outcomes = self._pulls.on_failed(order.request_id, reason, detail, time.monotonic())
        self._do(outcomes)

    def may_try_again(self, order: PullOrder) -> bool:
        with self._lock:
            return not self._stopped and not self._pulls.is_cancelled(order.request_id)

    def on_link(self, order: PullOrder, link: str) -> None:
        with self._lock:
            self._pulls.on_link(order.request_id, link)

    def fence_of(self, name: str) -> Any:
        with self._lock:
            return self._fences.get(name)

    def new_link_name(self, holder: str) -> str:
        return link_name(holder, self.name, self.config.epoch, next(self._link_numbers))

    def open_link(self, name: str, peer: str, end: End, deadline_s: float) -> Link:
        """Open this end within the time for that; raises ``LinkFailed``."""
        open_s = min(deadline_s, time.monotonic() + self.config.open_timeout_ms / 1e3)
        config = self.config
        place = LinkPlace(self.kv.device, config.link_address, config.link_interface)
        board = self.control.rendezvous.board(name, peer)
        try:
            link = self._opener(board, end, place, open_s)
        finally:
            self.control.rendezvous.forget(name)
        if link.device.type != self.kv.device.type:
            link.close()
            raise LinkUnavailable(f"a {config.link} link carries no KV of {self.kv.device}")
        with self._lock:
            self._links[name] = link
        return link

    def drop_link(self, name: str) -> None:
        """Close it, if it is open, and let go of what was to be sent over it."""
        with self._lock:
            # First in the table, so that nobody is told any more that this link is good.
            outcomes = self._holdings.on_link_closed(name, time.monotonic())
            link = self._links.pop(name, None)
        if link is not None:
            link.close()
        self._do(outcomes)

    def retire(self, thread: "_LinkThread") -> bool:
        """An idle thread wants to end; False when work has come meanwhile."""
        with self._lock:
            if not thread.jobs.empty():
                return False
            self._servers = {k: t for k, t in self._servers.items() if t is not thread}
            self._pullers = {k: t for k, t in self._pullers.items() if t is not thread}
            return True

    # What the tables want

    def _do(self, outcomes: Iterable[HoldingsOutcome | PullsOutcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Answer():
                    self._answer(outcome)
                case BreakLink():
                    self._break(outcome.link)
                case NameSent():
                    self._name_sent(outcome)
                case BeginPull():
                    self._begin_pull(outcome)
                case NameReceived():
                    self._name_received(outcome)
                case SayRelease():
                    self._say_release(outcome)

    def _answer(self, answer: Answer) -> None:
        pull, refused = answer.pull, answer.refused
        with self._lock:
            question = self._questions.pop(answer.ticket)
            server = None
            if refused is None:
                server = self._server_for(pull.sender)
                # Queued before the answer leaves: the puller opens its end when he has it.
                if server is not None:
                    server.jobs.put((pull, answer.chunk_blocks))
        if refused is None and server is None:
            refused = "busy"
            self.drop_link(pull.link)
        reply = PullKvReply(
            transfer_id=pull.transfer_id, refused=refused, chunk_blocks=answer.chunk_blocks
        )
        self.control.answer(question, reply)

    def _server_for(self, puller: str) -> "_Server | None":
        if puller not in self._servers:
            if self._stopped or len(self._servers) >= self.config.peers_max:
                return None
            self._servers[puller] = _Server(self, puller)
        return self._servers[puller]

    def _begin_pull(self, begin: BeginPull) -> None:
        order = begin.order
        holder = connector_name(order.source, self.rank)
        key = (holder, order.epoch)
        with self._lock:
            puller = self._pullers.get(key)
            if puller is None and not self._stopped and len(self._pullers) < self.config.peers_max:
                puller = self._pullers[key] = _Puller(self, holder)
            if puller is not None:
                puller.jobs.put((order, begin.deadline_s))
        if puller is None and self.begin_pull(order):
            self.pull_failed(order, "refused", f"{self.config.peers_max} peers are too many")

    def _break(self, name: str) -> None:
        """Wake the thread that waits on it; that thread drops it."""
        with self._lock:
            link = self._links.get(name)
        if link is not None:
            link.close()

    def _name_sent(self, name: NameSent) -> None:
        with self._lock:
            self._fences.pop(name.transfer_id, None)
            self._finished.sent.add(name.request_id)
        self._report(name.transfer_id, "sent", name, "")

    def _name_received(self, name: NameReceived) -> None:
        with self._lock:
            self._fences.pop(name.request_id, None)
            self._finished.received.add(name.request_id)
            if name.failed:
                self._finished.failed.add(name.request_id)
        if name.failed:
            log.warning("%s: %s not pulled: %s", self.name, name.transfer_id, name.detail)
        self._report(name.transfer_id, "received", name, name.detail)

    def _report(
        self, transfer_id: str, side: Any, name: NameSent | NameReceived, detail: str
    ) -> None:
        report = KvMoved(
            transfer_id=transfer_id,
            side=side,
            reason=name.reason,
            rank=self.rank,
            ranks=self.ranks,
            bytes_moved=name.bytes_moved,
            ms=max(0.0, name.ms),
            detail=detail[:500],
        )
        self.control.moved(self.config.worker, report)

    def _say_release(self, say: SayRelease) -> None:
        release = ReleaseKv(transfer_id=say.transfer_id, epoch=say.epoch, reason=say.reason)
        holder = connector_name(say.source, self.rank)
        self.control.publish(subjects.release_kv(holder), release)


class _LinkThread:
    """A thread with a queue of jobs and at most one link to its peer."""

    def __init__(self, mover: RankMover, peer: str, what: str) -> None:
        self.jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._mover = mover
        self._peer = peer
        self._link: Link | None = None
        self._link_name = ""
        self._lane = mover.kv.lane()
        self._staging: list[Tensor] = []
        self._thread = threading.Thread(
            target=self._run, name=f"{mover.name} {what} {peer}", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        self.jobs.put(None)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        with self._lane.use():
            while True:
                try:
                    job = self.jobs.get(timeout=self._mover.config.link_idle_ms / 1e3)
                except queue.Empty:
                    # First the link, which whoever uses it next will find closed; then the thread.
                    if self._link_name:
                        self._drop()
                    elif self._mover.retire(self):
                        break
                    continue
                if job is None:
                    break
                self._work(*job)
        self._drop()

    def _work(self, job: Any, more: Any) -> None:
        raise NotImplementedError

    def _drop(self) -> None:
        """This end of the link is of no more use."""
        name, self._link, self._link_name = self._link_name, None, ""
        if name:
            self._mover.drop_link(name)

    def _buffers(self, blocks: int) -> list[Tensor]:
        """Two buffers for chunks of so many blocks; kept for the next time."""
        if not self._staging or self._staging[0].numel() < blocks * self._mover.kv.block_bytes:
            self._staging = [self._mover.kv.buffer(blocks) for _ in range(2)]
        return self._staging

    def _cut(self, blocks: Sequence[int], chunk_blocks: int) -> list[tuple[Sequence[int], Tensor]]:
        """Chunks of blocks, each with the part of a buffer for it, the two in turn."""
        buffers = self._buffers(min(len(blocks), chunk_blocks))
        parts = [blocks[i : i + chunk_blocks] for i in range(0, len(blocks), chunk_blocks)]
        size = self._mover.kv.block_bytes
        return [(part, buffers[n % 2][: len(part) * size]) for n, part in enumerate(parts)]

    def _head(self, state: int, blocks: int, transfer_id: str) -> Tensor:
        words = _HEAD.pack(_MAGIC, state, blocks, _digest(transfer_id))
        data = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        return data.to(self._mover.kv.device)

    def _receive_head(self, link: Link, blocks: int, transfer_id: str, deadline_s: float) -> int:
        """The state in it; raises ``LinkFailed`` when it speaks of something else."""
        data = self._head(0, 0, transfer_id)
        link.receive(data, deadline_s).wait()
        magic, state, count, digest = _HEAD.unpack(bytes(data.cpu().tolist()))
        if (magic, count, digest) != (_MAGIC, blocks, _digest(transfer_id)):
            raise LinkFailed(f"link {link.name}: out of step")
        return int(state)


class _Server(_LinkThread):
    """Sends to one puller what he asks for, in his order."""

    def __init__(self, mover: RankMover, puller: str) -> None:
        super().__init__(mover, puller, "serves")

    def _work(self, pull: PullKv, chunk_blocks: int) -> None:
        try:
            self._serve(pull, chunk_blocks)
        except (LinkFailed, LinkUnavailable) as error:
            log.warning("%s: %s not sent: %s", self._mover.name, pull.transfer_id, error)
            self._drop()
        except Exception:
            # A bug, but no reason to keep blocks pinned: the puller tries again or gives up.
            log.exception("%s: %s not sent", self._mover.name, pull.transfer_id)
            self._drop()

    def _serve(self, pull: PullKv, chunk_blocks: int) -> None:
        deadline_s = time.monotonic() + self._mover.config.pull_timeout_ms / 1e3
        link = self._link_for(pull.link, deadline_s)
        blocks = self._mover.begin_send(pull)
        if blocks is None:
            head = self._head(_GONE, pull.blocks, pull.transfer_id)
            link.send(head, deadline_s).wait()
            return
        self._lane.after(self._mover.fence_of(pull.transfer_id))
        pending = link.send(self._head(_HERE, len(blocks), pull.transfer_id), deadline_s)
        for part, data in self._cut(blocks, chunk_blocks):
            self._mover.kv.gather(part, data)
            following = link.send(data, deadline_s)
            pending.wait()  # the other buffer is free again
            pending = following
        pending.wait()
        state = self._receive_head(link, len(blocks), pull.transfer_id, deadline_s)
        if state != _GOT:
            raise LinkFailed(f"link {link.name}: no receipt")
        self._mover.sent(pull)

    def _link_for(self, name: str, deadline_s: float) -> Link:
        if self._link is not None and self._link_name == name:
            return self._link
        self._drop()
        if not self._mover.is_current(name):
            raise LinkFailed(f"link {name}: was given up")
        self._link_name = name  # so that it counts as closed if it cannot be opened
        self._link = self._mover.open_link(name, self._peer, P_END, deadline_s)
        return self._link


class _Puller(_LinkThread):
    """Fetches from one holder, one order after the other."""

    def __init__(self, mover: RankMover, holder: str) -> None:
        super().__init__(mover, holder, "pulls from")

    def _work(self, order: PullOrder, deadline_s: float) -> None:
        mover = self._mover
        if not mover.begin_pull(order):
            return
        try:
            bytes_moved = self._pull(order, deadline_s)
        except CannotPull as error:
            mover.pull_failed(order, error.reason, str(error))
        except (LinkFailed, LinkUnavailable) as error:
            self._drop()
            mover.pull_failed(order, "transfer_failed", str(error))
        except NoResponders:
            self._drop()
            mover.pull_failed(order, "peer_lost", f"{self._peer} is not there")
        except BusError as error:
            self._drop()
            mover.pull_failed(order, "transfer_failed", str(error))
        except Exception as error:
            # A bug: the request must be named all the same, or it would wait for ever.
            log.exception("%s: %s not pulled", mover.name, order.transfer_id)
            self._drop()
            mover.pull_failed(order, "transfer_failed", repr(error))
        else:
            mover.pulled(order, bytes_moved)

    def _pull(self, order: PullOrder, deadline_s: float) -> int:
        """Try until it is here or there is no point; returns the bytes."""
        for tries_left in reversed(range(self._mover.config.link_tries_max)):
            chunk_blocks = self._ask(order, deadline_s)
            try:
                return self._transfer(order, chunk_blocks, deadline_s)
            except LinkFailed as error:
                self._drop()
                late = time.monotonic() >= deadline_s
                if not tries_left or late or not self._mover.may_try_again(order):
                    raise
                log.info("%s: %s again: %s", self._mover.name, order.transfer_id, error)
        raise AssertionError("a try either returns or raises")

    def _ask(self, order: PullOrder, deadline_s: float) -> int:
        """Return when the holder is about to send, with the size of its chunks."""
        mover, config = self._mover, self._mover.config
        while True:
            if not self._link_name:
                self._link_name = mover.new_link_name(self._peer)
            mover.on_link(order, self._link_name)
            pull = PullKv(
                transfer_id=order.transfer_id,
                sender=mover.name,
                sender_epoch=config.epoch,
                epoch=order.epoch,
                link=self._link_name,
                first_block=order.first_block,
                blocks=len(order.blocks),
                block_bytes=mover.kv.block_bytes,
                chunk_blocks=max(1, config.staging_bytes // mover.kv.block_bytes),
            )
            wait_s = min(config.ask_timeout_ms / 1e3, deadline_s - time.monotonic())
            if wait_s <= 0 or not mover.may_try_again(order):
                raise CannotPull("lease_expired", "no time left to ask")
            subject = subjects.pull_kv(self._peer)
            try:
                reply = mover.control.ask(subject, pull, PullKvReply, wait_s)
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

    def _transfer(self, order: PullOrder, chunk_blocks: int, deadline_s: float) -> int:
        mover = self._mover
        if self._link is None:
            self._link = mover.open_link(self._link_name, self._peer, D_END, deadline_s)
        link: Link = self._link
        count = len(order.blocks)
        state = self._receive_head(link, count, order.transfer_id, deadline_s)
        if state != _HERE:
            raise CannotPull("lease_expired", f"{self._peer} does not hold it any more")
        self._lane.after(mover.fence_of(order.request_id))
        chunks = self._cut(order.blocks, chunk_blocks)
        pending: list[Pending] = [link.receive(chunks[0][1], deadline_s)]
        for place, (part, data) in enumerate(chunks):
            if place + 1 < len(chunks):
                pending.append(link.receive(chunks[place + 1][1], deadline_s))
            pending[place].wait()
            mover.kv.scatter(part, data)
            self._lane.finish()
        link.send(self._head(_GOT, count, order.transfer_id), deadline_s).wait()
        return count * mover.kv.block_bytes
