"""A rank's side: threads that pull and serve, the bus, and the two tables of ``core``.

How to think about it. Four kinds of thread meet here:

    the model's   brings orders (``apply``) and takes what may be named (``finished``), each step
    the bus's     brings pulls and releases of others
    pullers       one per holder: asks, receives, writes into this cache (``pulling.py``)
    servers       one per puller: reads this cache, sends (``serving.py``)

Each link is used by one thread, so a slow peer delays nobody but itself. All decide through the
tables, under one lock that is never held while anything else waits; what the tables want is done
after it is given back.
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, assert_never

from bus import subjects
from bus.bus import Received
from components.worker.vllm.connector.blocks import HostCopy, KvBlocks
from components.worker.vllm.connector.config import ConnectorConfig, connector_name
from components.worker.vllm.connector.control import Control
from components.worker.vllm.connector.core import Holdings, Pulls
from components.worker.vllm.connector.link import (
    End,
    Link,
    LinkPlace,
    LinkUnavailable,
    Opener,
)
from components.worker.vllm.connector.link_thread import LinkThread
from components.worker.vllm.connector.orders import (
    Answer,
    BeginPull,
    BeginStage,
    BreakLink,
    Finished,
    ForgetStaged,
    HoldingsOutcome,
    NameReceived,
    NameSent,
    Orders,
    PullOrder,
    PullsOutcome,
    SayRelease,
)
from components.worker.vllm.connector.pulling import PULL_URGENCY, STAGE_URGENCY, Puller
from components.worker.vllm.connector.rendezvous import link_name
from components.worker.vllm.connector.serving import Server
from schemas.codes import ReleaseReason
from schemas.links import KvMoved, PullKv, PullKvReply, ReleaseKv

log: Final = logging.getLogger("switchyard.connector")

_JOIN_S: Final = 5.0


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
        self._named = threading.Condition(self._lock)  # a pull has ended
        self._holdings = Holdings(config, kv.block_bytes)
        self._pulls = Pulls(config, kv.block_bytes)
        self._copies: dict[str, HostCopy] = {}
        self._finished = Finished()
        self._idle = False
        self._questions: dict[int, Received[PullKv]] = {}
        self._tickets = itertools.count(1)
        self._link_numbers = itertools.count(1)
        self._fences: dict[str, Any] = {}
        self._servers: dict[str, Server] = {}
        self._pullers: dict[tuple[str, int], Puller] = {}
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
            for order in orders.stages:
                outcomes += self._pulls.stages.order(order)
            for request_id in orders.cancels:
                outcomes += self._pulls.cancel(request_id, now_s)
            self._idle = orders.idle
        self._do(outcomes)
        self._do(orders.releases)

    def finished(self) -> Finished:
        """What has ended since the last call; also the clock of leases and deadlines.

        A step without work for the model waits a moment for a pull to end: vLLM would sleep now,
        and only then look again.
        """
        with self._lock:
            if self._idle and len(self._pulls) and not self._finished.received:
                self._named.wait(self.config.idle_wait_ms / 1e3)
            now_s = time.monotonic()
            outcomes = [*self._holdings.on_tick(now_s), *self._pulls.on_tick(now_s)]
        self._do(outcomes)
        with self._lock:
            finished, self._finished = self._finished, Finished()
        return finished

    @property
    def pinned_blocks(self) -> int:
        with self._lock:
            return self._holdings.blocks

    @property
    def staged_bytes(self) -> int:
        """Host memory that is taken, or set aside for what is on its way."""
        with self._lock:
            return self._pulls.stages.bytes

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

    def pulled(self, order: PullOrder) -> None:
        size = len(order.blocks) * self.kv.block_bytes
        with self._lock:
            outcomes = self._pulls.on_done(order.request_id, size, time.monotonic())
        self._do(outcomes)

    def pull_failed(self, order: PullOrder, reason: ReleaseReason, detail: str) -> None:
        with self._lock:
            outcomes = self._pulls.on_failed(order.request_id, reason, detail, time.monotonic())
        self._do(outcomes)

    def may_pull_again(self, order: PullOrder) -> bool:
        with self._lock:
            return not self._stopped and not self._pulls.is_cancelled(order.request_id)

    def begin_stage(self, order: PullOrder) -> bool:
        with self._lock:
            return not self._stopped and self._pulls.stages.begin(order.request_id)

    def may_stage_again(self, order: PullOrder) -> bool:
        with self._lock:
            return not self._stopped and self._pulls.stages.is_wanted(order.request_id)

    def staged(self, order: PullOrder, copy: HostCopy) -> None:
        with self._lock:
            self._copies[order.request_id] = copy
            outcomes = self._pulls.stages.on_whole(order.request_id)
        self._do(outcomes)

    def stage_failed(self, order: PullOrder) -> None:
        with self._lock:
            outcomes = self._pulls.stages.on_failed(order.request_id)
        self._do(outcomes)

    def staged_copy(self, order: PullOrder) -> HostCopy | None:
        """What was pulled into host memory for this request, if it was."""
        with self._lock:
            whole = self._pulls.stages.is_whole(order.request_id)
            return self._copies[order.request_id] if whole else None

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

    def retire(self, thread: LinkThread) -> bool:
        """An idle thread wants to end; False when work has come meanwhile."""
        with self._lock:
            if thread.has_jobs:
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
                case BeginStage():
                    self._begin_stage(outcome)
                case ForgetStaged():
                    self._copies.pop(outcome.request_id, None)
                case NameReceived():
                    self._name_received(outcome)
                case SayRelease():
                    self.say(outcome)
                case _:
                    assert_never(outcome)

    def _answer(self, answer: Answer) -> None:
        pull, refused = answer.pull, answer.refused
        with self._lock:
            question = self._questions.pop(answer.ticket)
            server = None
            if refused is None:
                server = self._server_for(pull.sender)
                # Queued before the answer leaves: the puller opens its end when he has it.
                if server is not None:
                    server.put(answer)
        if refused is None and server is None:
            refused = "busy"
            self.drop_link(pull.link)
        reply = PullKvReply(
            transfer_id=pull.transfer_id, refused=refused, chunk_blocks=answer.chunk_blocks
        )
        self.control.answer(question, reply)

    def _server_for(self, puller: str) -> "Server | None":
        if puller not in self._servers:
            if self._stopped or len(self._servers) >= self.config.peers_max:
                return None
            self._servers[puller] = Server(self, puller)
        return self._servers[puller]

    def _begin_pull(self, begin: BeginPull) -> None:
        if not self._hand_over(begin, PULL_URGENCY) and self.begin_pull(begin.order):
            peers = self.config.peers_max
            self.pull_failed(begin.order, "refused", f"{peers} peers are too many")

    def _begin_stage(self, begin: BeginStage) -> None:
        if not self._hand_over(begin, STAGE_URGENCY) and self.begin_stage(begin.order):
            self.stage_failed(begin.order)

    def _hand_over(self, job: BeginPull | BeginStage, urgency: int) -> bool:
        """To the thread that pulls from this life of this holder; False when there are too many."""
        holder = connector_name(job.order.source, self.rank)
        key = (holder, job.order.epoch)
        with self._lock:
            puller = self._pullers.get(key)
            if puller is None:
                if self._stopped or len(self._pullers) >= self.config.peers_max:
                    return False
                puller = self._pullers[key] = Puller(self, holder)
            puller.put(job, urgency)
        return True

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
            self._named.notify()
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

    def say(self, say: SayRelease) -> None:
        release = ReleaseKv(transfer_id=say.transfer_id, epoch=say.epoch, reason=say.reason)
        holder = connector_name(say.source, self.rank)
        self.control.publish(subjects.release_kv(holder), release)
