"""What a rank holds for others and what it wants from others. Pure: no thread, clock or bus.

How to think about it. vLLM keeps two promises open that only we can close, and it crashes or leaks
when we close one wrongly: blocks of a finished prompt stay pinned until its request is named as
*sent*, and a request that waits for KV stays parked until it is named as *received*. Each promise
is one entry in one of two tables, and the entry's removal is the only place that names: so once,
and only what is there.

    Holdings (P)   held -> queued -> sending -> (freed)     back to held when a link broke
    Pulls (D)      queued -> running -> (named)

The lease of an entry in ``Holdings`` runs from the step that pinned it. When it ends, or somebody
releases it, a held or queued entry is freed at once; one that is being read is freed as soon as
nothing reads it any more, and its link is broken so that this is now. Whoever pulls counts blocks
within the entry, so a wrong or late pull can reach nothing that is not held for it.

An entry of ``Pulls`` that runs belongs to the thread that runs it until ``on_done``: only then is
it named, because until then somebody may still write into its blocks.

Why D can trust what arrived, however long either side has been stopped: P frees blocks only once
nothing reads them, whatever the clock says, and what was read is a copy that cannot change on its
way. So a lease that ends in mid-transfer can make bytes stay away, but never make them wrong.

What is pulled before its request has blocks waits in host memory: ``staging.py``.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal

from components.domain.handoff import Ended
from components.worker.vllm.connector.config import ConnectorConfig
from components.worker.vllm.connector.orders import (
    Answer,
    BeginPull,
    BreakLink,
    HoldingsOutcome,
    NameReceived,
    NameSent,
    Pin,
    PullOrder,
    PullsOutcome,
    SayRelease,
)
from components.worker.vllm.connector.rendezvous import link_number
from components.worker.vllm.connector.staging import Stages
from schemas.codes import ReleaseReason
from schemas.links import PullKv, PullRefusal

ENDED_MAX: Final = 4_096
ENDED_TTL_S: Final = 120.0
LINKS_MAX: Final = 1_024


# P


@dataclass(slots=True)
class _Holding:
    pin: Pin
    since_s: float
    until_s: float
    phase: Literal["held", "queued", "sending"] = "held"
    link: str = ""
    ending: ReleaseReason | None = None
    bytes_moved: int = 0


@dataclass(frozen=True, slots=True)
class _Early:
    """A pull that came before the step that pins what it wants."""

    ticket: int
    pull: PullKv
    until_s: float


class Holdings:
    """Everything that is pinned at this rank. ``block_bytes`` is one block of all layers."""

    def __init__(self, config: ConnectorConfig, block_bytes: int) -> None:
        self._config = config
        self._block_bytes = block_bytes
        self._chunk_blocks_max = max(1, config.staging_bytes // block_bytes)
        self._entries: dict[str, _Holding] = {}
        self._early: dict[int, _Early] = {}
        self._ended = Ended(ENDED_MAX, ENDED_TTL_S)
        # puller -> (its epoch, number of its newest link, has that link been closed here?)
        self._links: OrderedDict[str, tuple[int, int, bool]] = OrderedDict()
        self.closing = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def blocks(self) -> int:
        """Blocks that are pinned."""
        return sum(len(entry.pin.blocks) for entry in self._entries.values())

    def pin(self, pin: Pin, now_s: float) -> list[HoldingsOutcome]:
        """VLLM has finished a prompt and keeps its blocks for us."""
        reason: ReleaseReason | None = self._ended.get(pin.transfer_id)
        if pin.transfer_id in self._entries:
            reason = "superseded"  # whoever names transfers has used a name twice
        elif len(self._entries) >= self._config.transfers_max:
            reason = "refused"
        if reason is not None:
            return [NameSent(pin.request_id, pin.transfer_id, reason, 0, 0.0)]
        lease_ms = min(pin.lease_ms, self._config.lease_ms)
        self._entries[pin.transfer_id] = _Holding(pin, now_s, now_s + lease_ms / 1e3)
        outcomes: list[HoldingsOutcome] = []
        for early in [e for e in self._early.values() if e.pull.transfer_id == pin.transfer_id]:
            del self._early[early.ticket]
            outcomes += self.on_pull(early.ticket, early.pull, now_s)
        return outcomes

    def on_pull(self, ticket: int, pull: PullKv, now_s: float) -> list[HoldingsOutcome]:
        """Somebody asks for blocks. Answered now, or once the step that pins them has come."""
        refused = self._objection(pull)
        if refused is not None:
            return [Answer(ticket, pull, refused)]
        entry = self._entries.get(pull.transfer_id)
        if entry is None:
            if len(self._early) >= self._config.transfers_max:
                return [Answer(ticket, pull, "busy")]
            self._early[ticket] = _Early(ticket, pull, now_s + self._config.early_wait_ms / 1e3)
            return []
        if pull.first_block + pull.blocks > len(entry.pin.blocks):
            return [Answer(ticket, pull, "out_of_range")]
        if entry.phase != "held":
            # The puller has given its link up and we have not noticed yet.
            again: list[HoldingsOutcome] = [Answer(ticket, pull, "busy")]
            return again if entry.link == pull.link else [BreakLink(entry.link), *again]
        entry.phase, entry.link = "queued", pull.link
        _, puller, epoch, number = link_number(pull.link)
        self._note_link(puller, epoch, number, closed=False)
        return [Answer(ticket, pull, None, min(pull.chunk_blocks, self._chunk_blocks_max))]

    def _objection(self, pull: PullKv) -> PullRefusal | None:
        if self.closing:
            return "closing"
        if pull.epoch != self._config.epoch:
            return "stale_epoch"
        if pull.block_bytes != self._block_bytes:
            return "mismatch"
        if self._ended.get(pull.transfer_id) is not None:
            return "unknown_transfer"
        return "stale_link" if self._is_stale(pull) else None

    def _is_stale(self, pull: PullKv) -> bool:
        """Is this link another's, older than one we have seen, or closed here?"""
        try:
            _, puller, epoch, number = link_number(pull.link)
        except ValueError:
            return True
        if puller != pull.sender or epoch != pull.sender_epoch:
            return True
        newest_epoch, newest_number, closed = self._links.get(puller, (0, 0, False))
        newest = (newest_epoch, newest_number)
        return (epoch, number) < newest or ((epoch, number) == newest and closed)

    def is_current(self, link: str) -> bool:
        """Is it the newest one of its puller, and not closed here?"""
        _, puller, epoch, number = link_number(link)
        return self._links.get(puller) == (epoch, number, False)

    def begin(self, pull: PullKv) -> tuple[int, ...] | None:
        """The link's thread is about to read; the blocks, or None when they are not for it now."""
        entry = self._entries.get(pull.transfer_id)
        if entry is None or entry.phase != "queued" or entry.link != pull.link:
            return None
        entry.phase = "sending"
        return entry.pin.blocks[pull.first_block : pull.first_block + pull.blocks]

    def on_sent(self, pull: PullKv, now_s: float) -> list[HoldingsOutcome]:
        """The puller has everything and said so. Nothing reads the blocks any more."""
        entry = self._entries.get(pull.transfer_id)
        if entry is None or entry.phase != "sending" or entry.link != pull.link:
            return []
        entry.bytes_moved = pull.blocks * pull.block_bytes
        return [self._free(entry, "consumed", now_s)]

    def on_link_closed(self, link: str, now_s: float) -> list[HoldingsOutcome]:
        """A link broke, or was never opened: nothing reads blocks for it any more."""
        _, puller, epoch, number = link_number(link)
        if self._links.get(puller, (0, 0, False))[:2] == (epoch, number):
            self._note_link(puller, epoch, number, closed=True)
        outcomes: list[HoldingsOutcome] = []
        for entry in [e for e in self._entries.values() if e.link == link]:
            entry.phase, entry.link = "held", ""
            if entry.ending is not None:
                outcomes.append(self._free(entry, entry.ending, now_s))
        return outcomes

    def release(
        self, transfer_id: str, epoch: int, reason: ReleaseReason, now_s: float
    ) -> list[HoldingsOutcome]:
        """Nobody will pull this; also of a transfer that is not pinned yet."""
        if epoch != self._config.epoch:
            return []
        entry = self._entries.get(transfer_id)
        if entry is None:
            self._ended.add(transfer_id, reason, now_s)
            return []
        return self._end(entry, reason, now_s)

    def on_tick(self, now_s: float) -> list[HoldingsOutcome]:
        """Leases that have run out, and pulls that have waited long enough."""
        self._ended.expire(now_s)
        outcomes: list[HoldingsOutcome] = []
        for entry in [e for e in self._entries.values() if e.until_s <= now_s]:
            outcomes += self._end(entry, "lease_expired", now_s)
        for early in [e for e in self._early.values() if e.until_s <= now_s]:
            del self._early[early.ticket]
            outcomes.append(Answer(early.ticket, early.pull, "unknown_transfer"))
        return outcomes

    def _end(self, entry: _Holding, reason: ReleaseReason, now_s: float) -> list[HoldingsOutcome]:
        if entry.phase != "sending":
            return [self._free(entry, reason, now_s)]
        if entry.ending is not None:
            return []  # its thread is on the way back
        entry.ending = reason
        return [BreakLink(entry.link)]

    def _free(self, entry: _Holding, reason: ReleaseReason, now_s: float) -> NameSent:
        """The only way out of the table."""
        pin = entry.pin
        del self._entries[pin.transfer_id]
        self._ended.add(pin.transfer_id, reason, now_s)
        held_ms = (now_s - entry.since_s) * 1e3
        return NameSent(pin.request_id, pin.transfer_id, reason, entry.bytes_moved, held_ms)

    def _note_link(self, puller: str, epoch: int, number: int, *, closed: bool) -> None:
        self._links[puller] = (epoch, number, closed)
        self._links.move_to_end(puller)
        if len(self._links) > LINKS_MAX:
            self._links.popitem(last=False)


# D


@dataclass(slots=True)
class _Wanted:
    order: PullOrder
    since_s: float
    until_s: float
    running: bool = False
    link: str = ""
    cancelled: bool = False
    break_s: float = float("inf")


class Pulls:
    """Everything that this rank waits for; ``stages``: what comes into host memory before that."""

    def __init__(self, config: ConnectorConfig, block_bytes: int) -> None:
        self._config = config
        self._entries: dict[str, _Wanted] = {}
        self.stages = Stages(config, block_bytes)

    def __len__(self) -> int:
        return len(self._entries)

    def order(self, order: PullOrder, now_s: float) -> list[PullsOutcome]:
        """The scheduler has parked a request and set blocks aside for it."""
        assert order.blocks, "a request that loads nothing is never parked, so never named"
        assert order.request_id not in self._entries, "ordered twice"
        until_s = now_s + self._config.pull_timeout_ms / 1e3
        entry = _Wanted(order, now_s, until_s)
        entry.break_s = until_s + self._config.cancel_grace_ms / 1e3
        self._entries[order.request_id] = entry
        if order.refused:
            return self._give_up(entry, "refused", order.refused, now_s)
        if len(self._entries) > self._config.transfers_max:
            return self._give_up(entry, "refused", "too many pulls wait here", now_s)
        return [*self.stages.on_blocks(order.request_id), BeginPull(order, until_s)]

    @property
    def running(self) -> int:
        """Pulls that a thread has taken up."""
        return sum(entry.running for entry in self._entries.values())

    def begin(self, request_id: str) -> bool:
        """A thread takes it up; False when it is not wanted any more."""
        entry = self._entries.get(request_id)
        if entry is None or entry.running:
            return False
        entry.running = True
        return True

    def on_link(self, request_id: str, link: str) -> None:
        """The thread that runs it uses this link now."""
        self._entries[request_id].link = link

    def is_cancelled(self, request_id: str) -> bool:
        return self._entries[request_id].cancelled

    def on_done(self, request_id: str, bytes_moved: int, now_s: float) -> list[PullsOutcome]:
        """The KV is in place, and nobody writes into the blocks any more."""
        entry = self._entries[request_id]
        return self._name(entry, "consumed", bytes_moved, "", now_s)

    def on_failed(
        self, request_id: str, reason: ReleaseReason, detail: str, now_s: float
    ) -> list[PullsOutcome]:
        """It could not be pulled, and nobody writes into the blocks any more."""
        entry = self._entries[request_id]
        return self._give_up(entry, "cancelled" if entry.cancelled else reason, detail, now_s)

    def cancel(self, request_id: str, now_s: float) -> list[PullsOutcome]:
        """The request was aborted while it waited. A parked one must be named all the same."""
        entry = self._entries.get(request_id)
        if entry is None:
            return [*self.stages.drop(request_id)]
        entry.cancelled = True
        if not entry.running:
            return self._give_up(entry, "cancelled", "aborted", now_s)
        # Most pulls that run are over before a new link could be opened.
        entry.break_s = min(entry.break_s, now_s + self._config.cancel_grace_ms / 1e3)
        return []

    def on_tick(self, now_s: float) -> list[PullsOutcome]:
        """What waits in a queue for too long fails.

        Threads watch the deadline of what runs; one that hangs past it is woken.
        """
        outcomes: list[PullsOutcome] = []
        for entry in list(self._entries.values()):
            if entry.running and entry.break_s <= now_s:
                entry.break_s = float("inf")
                if entry.link:
                    outcomes.append(BreakLink(entry.link))
            elif not entry.running and entry.until_s <= now_s:
                outcomes += self._give_up(entry, "lease_expired", "waited too long", now_s)
        return outcomes

    def _give_up(
        self, entry: _Wanted, reason: ReleaseReason, detail: str, now_s: float
    ) -> list[PullsOutcome]:
        order = entry.order
        release = SayRelease(order.transfer_id, order.source, order.epoch, reason)
        return [*self._name(entry, reason, 0, detail, now_s), release]

    def _name(
        self, entry: _Wanted, reason: ReleaseReason, bytes_moved: int, detail: str, now_s: float
    ) -> list[PullsOutcome]:
        """The only way out of the table."""
        order = entry.order
        del self._entries[order.request_id]
        named = NameReceived(
            request_id=order.request_id,
            transfer_id=order.transfer_id,
            failed=reason != "consumed",
            reason=reason,
            bytes_moved=bytes_moved,
            ms=(now_s - entry.since_s) * 1e3,
            detail=detail,
        )
        return [named, *self.stages.drop(order.request_id)]
