"""How KV pages pass from a prefill worker P to a decode worker D, whatever gets lost on the way.

How to think about this file
----------------------------
Two machines, one per side, share a transfer id and nothing else. Each is a table of transfers, and
each transfer is in one phase:

    P   computing -> offered -> moving -> ready -> (ended)
    D   waiting -> held -> granted -> (ended)          `held` only while D has no room

    P OfferHandoff     I have the pages, for as long as the lease runs.
    D RenewHandoff     I still want them. The lease starts anew.
    D GrantHandoff     I have room: move them.
    P ReadyHandoff     All bytes are with you.
    D ConsumeHandoff   I run on my own copy. Free yours.
    either ReleaseHandoff   I have given up. Free what you hold.

Messages can be lost, doubled, late, or overtaken by others, and either side can die at any moment.
The protocol does not try to prevent any of that. It rests on four rules instead:

1. *Each side can end alone.* P owns the pages, and its reaper frees them when the lease runs out,
   whatever D does or believes. D owns its own deadline, and when that passes it computes the prompt
   itself (or fails the request, by setting). So no side ever needs an answer to be able to finish,
   and what a message can do is at most to make the end come sooner, or be a better one.

2. *Ended is for good.* A transfer leaves the table once, and that is the only place where its
   pages are freed (P) or its request goes on (D). So nothing is freed or started twice, however
   often the message that caused it arrives. A small, bounded memory of ended transfers answers
   late questions.

3. *Whoever waits asks again.* The side whose turn it is not repeats its last word: P the offer
   until it hears something, P `ready` until it is consumed, D the grant until it is ready, and D,
   while nothing is offered, `RenewHandoff` as a question: do you know this transfer? A peer that
   does not know it, or has ended it, says so with a release. So a lost message costs about one
   `resend_ms` and never a whole deadline.

4. *A word counts only from the life it was expected from.* Router and scheduler tell each side the
   other's name and epoch; the epoch of a message stands in its envelope. A restarted worker knows
   nothing of the pages of its former life, and nobody believes that it does.

Time is the caller's monotonic clock, passed in. Nothing here compares clocks of two machines: a
lease is a duration, and P's alone counts. D's grant is a promise about D's own room, kept in
pages; `free` is what its engine has left. Granting is in order of arrival: a large prompt is not
starved by small ones.

What the machines do not know is how bytes move. `MoveKv` begins it, `StopMoving` ends it; after
`StopMoving` nothing may read P's pages any more (a connector that cannot stop at once must keep
them pinned by itself until it has). Where the engines move the bytes between themselves (a pull
by D's connector), D's engine reports the arrival and `on_arrived` does what `ReadyHandoff` would
have done.

Admittedly the prompt is computed twice when a release overtakes a `ready`. That is cheap beside
what it would take to rule it out.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from components.domain.outcomes import Count, Send
from schemas.codes import ReleaseReason
from schemas.handoff import (
    ConsumeHandoff,
    GrantHandoff,
    OfferHandoff,
    ReadyHandoff,
    ReleaseHandoff,
    RenewHandoff,
)
from schemas.message import Message

ToPrefill = GrantHandoff | RenewHandoff | ConsumeHandoff | ReleaseHandoff
ToDecode = OfferHandoff | ReadyHandoff | ReleaseHandoff

Params = Mapping[str, str | int | None]


@dataclass(frozen=True, slots=True)
class HandoffSettings:
    """Durations and bounds of one side.

    D waits for the offer, then for room, then for the bytes: each has its own limit. However often
    D renews, P holds pages for `hold_ms_max` at most. `resend_ms` is how long to wait before saying
    something again.
    """

    lease_ms: int = 10_000
    hold_ms_max: int = 60_000
    offer_wait_ms: int = 60_000
    room_wait_ms: int = 30_000
    ready_wait_ms: int = 10_000
    resend_ms: int = 1_000
    fallback: Literal["recompute", "fail"] = "recompute"
    transfers_max: int = 4_096
    ended_max: int = 4_096
    ended_ttl_ms: int = 60_000

    @property
    def resend_s(self) -> float:
        """Often enough that a lost renewal does not cost the lease."""
        return min(self.resend_ms, self.lease_ms / 3) / 1e3


@dataclass(frozen=True, slots=True)
class Pairing:
    """What the router told both sides: the transfer, whose request it is, and who the other is.

    `peer_epoch` None accepts any life of the peer.
    """

    transfer_id: str
    request_id: str
    attempt: int
    peer: str
    peer_epoch: int | None = None
    trace: str | None = None


# What a machine wants done, besides sending.


@dataclass(frozen=True, slots=True)
class StopPrefill:
    """P: nobody wants this prompt any more; it holds no lease yet."""

    transfer_id: str
    reason: ReleaseReason


@dataclass(frozen=True, slots=True)
class MoveKv:
    """P: begin to move the bytes, then report `on_moved` or `on_move_failed`."""

    transfer_id: str
    peer: str
    bytes_total: int


@dataclass(frozen=True, slots=True)
class StopMoving:
    """P: from here on nothing reads the pages of this transfer."""

    transfer_id: str


@dataclass(frozen=True, slots=True)
class FreeKv:
    """P: free the pages. Comes exactly once for each transfer that was prefilled."""

    transfer_id: str
    reason: ReleaseReason


@dataclass(frozen=True, slots=True)
class Granted:
    """D: the bytes are about to come; an engine that pulls them needs `offer.params`."""

    transfer_id: str
    offer: OfferHandoff


@dataclass(frozen=True, slots=True)
class StartDecode:
    """D: the KV is here. `waited_ms` is the time since the grant."""

    transfer_id: str
    bytes_moved: int
    waited_ms: float


@dataclass(frozen=True, slots=True)
class FallBack:
    """D: no KV will come. Compute the prompt here, or fail the request."""

    transfer_id: str
    reason: ReleaseReason
    recompute: bool


HandoffOutcome = (
    Send | Count | StopPrefill | MoveKv | StopMoving | FreeKv | Granted | StartDecode | FallBack
)


class Ended:
    """The last transfers that ended, and why, to answer late words. Bounded, with TTL."""

    def __init__(self, entries_max: int, ttl_s: float) -> None:
        self._entries_max = entries_max
        self._ttl_s = ttl_s
        self._entries: OrderedDict[str, tuple[ReleaseReason, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, transfer_id: str, reason: ReleaseReason, now_s: float) -> None:
        """Note the end; the first one stands."""
        if transfer_id not in self._entries:
            self._entries[transfer_id] = (reason, now_s + self._ttl_s)
            while len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)

    def get(self, transfer_id: str) -> ReleaseReason | None:
        entry = self._entries.get(transfer_id)
        return entry[0] if entry else None

    def expire(self, now_s: float) -> None:
        """Forget what is older than the TTL."""
        while self._entries:
            transfer_id, (_, until_s) = next(iter(self._entries.items()))
            if until_s > now_s:
                return
            del self._entries[transfer_id]


# P


@dataclass(slots=True)
class Outgoing:
    """One transfer at P."""

    pairing: Pairing
    phase: Literal["computing", "offered", "moving", "ready"] = "computing"
    offer: OfferHandoff | None = None
    bytes_moved: int = 0
    lease_until_s: float = 0.0
    hold_until_s: float = 0.0
    say_again_s: float = 0.0


class PrefillSide:
    """All transfers of one prefill worker. `name` and `epoch` are its own."""

    def __init__(self, name: str, epoch: int, settings: HandoffSettings) -> None:
        self._name = name
        self._epoch = epoch
        self._settings = settings
        self._transfers: dict[str, Outgoing] = {}
        self._ended = Ended(settings.ended_max, settings.ended_ttl_ms / 1e3)

    def __len__(self) -> int:
        return len(self._transfers)

    @property
    def full(self) -> bool:
        """No further transfer may be expected."""
        return len(self._transfers) >= self._settings.transfers_max

    @property
    def leases(self) -> int:
        """Transfers that hold pages."""
        return sum(t.phase != "computing" for t in self._transfers.values())

    # What the worker does

    def expect(self, pairing: Pairing, now_s: float) -> list[HandoffOutcome]:
        """A prompt is about to be computed for `pairing.peer`. Check `full` first."""
        assert not self.full, "one transfer too many"
        reason = self._ended.get(pairing.transfer_id)
        if reason is not None:  # D gave up before we heard of it
            return [StopPrefill(pairing.transfer_id, reason)]
        if pairing.transfer_id not in self._transfers:
            self._transfers[pairing.transfer_id] = Outgoing(pairing)
        return []

    def on_prefilled(
        self,
        transfer_id: str,
        tokens: int,
        pages: int,
        bytes_total: int,
        params: Params,
        now_s: float,
    ) -> list[HandoffOutcome]:
        """The engine has the prompt's KV and keeps its pages: offer them, the lease begins."""
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            return [FreeKv(transfer_id, self._ended.get(transfer_id) or "cancelled")]
        if transfer.phase != "computing":
            return [Count("handoff_ignored_total")]
        settings, pairing = self._settings, transfer.pairing
        transfer.phase = "offered"
        transfer.hold_until_s = now_s + settings.hold_ms_max / 1e3
        self._begin_lease(transfer, now_s)
        transfer.offer = OfferHandoff(
            transfer_id=transfer_id,
            request_id=pairing.request_id,
            attempt=pairing.attempt,
            sender=self._name,
            sender_epoch=self._epoch,
            tokens=tokens,
            pages=pages,
            bytes_total=bytes_total,
            lease_ms=settings.lease_ms,
            params=dict(params),
        )
        return [self._say(transfer, transfer.offer, now_s)]

    def on_moved(self, transfer_id: str, bytes_moved: int, now_s: float) -> list[HandoffOutcome]:
        """The link has moved everything."""
        transfer = self._transfers.get(transfer_id)
        if transfer is None or transfer.phase != "moving":
            return [Count("handoff_ignored_total")]
        transfer.phase = "ready"
        transfer.bytes_moved = bytes_moved
        return [self._say_ready(transfer, now_s)]

    def on_move_failed(self, transfer_id: str, now_s: float) -> list[HandoffOutcome]:
        """The link gave up. D will not get these bytes from here."""
        transfer = self._transfers.get(transfer_id)
        if transfer is None or transfer.phase != "moving":
            return [Count("handoff_ignored_total")]
        transfer.phase = "ready"  # it no longer moves: nothing to stop
        return self._release(transfer, "transfer_failed", now_s)

    def cancel(self, transfer_id: str, reason: ReleaseReason, now_s: float) -> list[HandoffOutcome]:
        """The request is not wanted any more. An unknown transfer is noted as ended."""
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            self._ended.add(transfer_id, reason, now_s)
            return []
        return self._release(transfer, reason, now_s)

    def cancel_all(self, reason: ReleaseReason, now_s: float) -> list[HandoffOutcome]:
        """End every transfer, as at the end of a drain."""
        return [o for t in list(self._transfers.values()) for o in self._release(t, reason, now_s)]

    def on_peer_lost(self, peer: str, peer_epoch: int, now_s: float) -> list[HandoffOutcome]:
        """That life of D is over."""
        lost = [t for t in self._transfers.values() if _is_from(t.pairing, peer, peer_epoch)]
        return [outcome for t in lost for outcome in self._end(t, "peer_lost", now_s)]

    # What D says

    def on_message(
        self, message: ToPrefill, sender_epoch: int, now_s: float
    ) -> list[HandoffOutcome]:
        """A message of D; `sender_epoch` stands in its envelope."""
        transfer = self._transfers.get(message.transfer_id)
        if transfer is None:
            return self._answer_ended(message, now_s)
        if not _is_from(transfer.pairing, message.sender, sender_epoch):
            return [Count("handoff_ignored_total")]
        match message:
            case ReleaseHandoff():
                return self._end(transfer, message.reason, now_s)
            case ConsumeHandoff():
                return self._end(transfer, "consumed", now_s)
            case RenewHandoff():
                return self._on_renew(transfer, now_s)
            case GrantHandoff():
                return self._on_grant(transfer, now_s)

    def _on_renew(self, transfer: Outgoing, now_s: float) -> list[HandoffOutcome]:
        if transfer.phase == "offered":
            self._begin_lease(transfer, now_s)
            self._heard(transfer, now_s)
        return []

    def _on_grant(self, transfer: Outgoing, now_s: float) -> list[HandoffOutcome]:
        if transfer.phase == "ready":
            return [self._say_ready(transfer, now_s)]
        if transfer.phase != "offered":
            return []  # moving: said twice. computing: nothing was offered, so nothing is granted
        assert transfer.offer is not None
        transfer.phase = "moving"
        self._begin_lease(transfer, now_s)
        pairing = transfer.pairing
        return [MoveKv(pairing.transfer_id, pairing.peer, transfer.offer.bytes_total)]

    def _answer_ended(self, message: ToPrefill, now_s: float) -> list[HandoffOutcome]:
        """A word about a transfer that is not here."""
        if isinstance(message, ReleaseHandoff | ConsumeHandoff):
            # Perhaps it overtook the order to compute: then that must find it.
            self._ended.add(message.transfer_id, "cancelled", now_s)
            return []
        reason = self._ended.get(message.transfer_id) or "lease_expired"
        self._ended.add(message.transfer_id, reason, now_s)
        release = ReleaseHandoff(transfer_id=message.transfer_id, sender=self._name, reason=reason)
        return [Send(release, (message.sender,))]

    # Time

    def on_tick(self, now_s: float) -> list[HandoffOutcome]:
        """The reaper, and what has to be said again. Call it every 100 ms or so."""
        self._ended.expire(now_s)
        outcomes: list[HandoffOutcome] = []
        for transfer in list(self._transfers.values()):
            if transfer.phase == "computing":
                continue
            if now_s >= transfer.lease_until_s:
                outcomes += self._release(transfer, "lease_expired", now_s)
            elif now_s >= transfer.say_again_s:
                outcomes += self._say_again(transfer, now_s)
        return outcomes

    def _say_again(self, transfer: Outgoing, now_s: float) -> list[HandoffOutcome]:
        if transfer.phase == "offered":
            assert transfer.offer is not None
            return [self._say(transfer, transfer.offer, now_s)]
        return [self._say_ready(transfer, now_s)] if transfer.phase == "ready" else []

    def _begin_lease(self, transfer: Outgoing, now_s: float) -> None:
        until_s = now_s + self._settings.lease_ms / 1e3
        transfer.lease_until_s = min(until_s, transfer.hold_until_s)

    # The end

    def _release(
        self, transfer: Outgoing, reason: ReleaseReason, now_s: float
    ) -> list[HandoffOutcome]:
        """End it and tell D."""
        pairing = transfer.pairing
        release = ReleaseHandoff(transfer_id=pairing.transfer_id, sender=self._name, reason=reason)
        said: HandoffOutcome = Send(release, (pairing.peer,), pairing.trace)
        return [*self._end(transfer, reason, now_s), said]

    def _end(self, transfer: Outgoing, reason: ReleaseReason, now_s: float) -> list[HandoffOutcome]:
        """The only way out of the table."""
        transfer_id = transfer.pairing.transfer_id
        del self._transfers[transfer_id]
        self._ended.add(transfer_id, reason, now_s)
        if transfer.phase == "computing":
            return [StopPrefill(transfer_id, reason)]
        stop: list[HandoffOutcome] = []
        if transfer.phase == "moving":
            stop = [StopMoving(transfer_id)]
        return [*stop, FreeKv(transfer_id, reason), Count(f"handoff_{reason}_total")]

    def _say_ready(self, transfer: Outgoing, now_s: float) -> Send:
        ready = ReadyHandoff(
            transfer_id=transfer.pairing.transfer_id,
            sender=self._name,
            sender_epoch=self._epoch,
            bytes_moved=transfer.bytes_moved,
        )
        return self._say(transfer, ready, now_s)

    def _say(self, transfer: Outgoing, message: Message, now_s: float) -> Send:
        self._heard(transfer, now_s)
        return Send(message, (transfer.pairing.peer,), transfer.pairing.trace)

    def _heard(self, transfer: Outgoing, now_s: float) -> None:
        transfer.say_again_s = now_s + self._settings.resend_s


# D


@dataclass(slots=True)
class Incoming:
    """One transfer at D. `reserved` says that its pages are set aside."""

    pairing: Pairing
    pages: int
    phase: Literal["waiting", "held", "granted"] = "waiting"
    reserved: bool = False
    offer: OfferHandoff | None = None
    until_s: float = 0.0
    granted_s: float = 0.0
    say_again_s: float = 0.0


@dataclass(slots=True)
class _Early:
    """An offer that came before the order to expect it."""

    offer: OfferHandoff
    sender_epoch: int
    until_s: float


class DecodeSide:
    """All transfers of one decode worker. `name` and `epoch` are its own."""

    def __init__(self, name: str, epoch: int, settings: HandoffSettings) -> None:
        self._name = name
        self._epoch = epoch
        self._settings = settings
        self._transfers: dict[str, Incoming] = {}
        self._early: dict[str, _Early] = {}
        self._ended = Ended(settings.ended_max, settings.ended_ttl_ms / 1e3)
        self._free_pages = 0
        self._reserved_pages = 0

    def __len__(self) -> int:
        return len(self._transfers)

    @property
    def full(self) -> bool:
        """No further transfer may be expected."""
        return len(self._transfers) >= self._settings.transfers_max

    @property
    def leases(self) -> int:
        """Transfers for which pages are set aside."""
        return sum(t.reserved for t in self._transfers.values())

    @property
    def reserved_pages(self) -> int:
        """Pages set aside for what has not arrived yet."""
        return self._reserved_pages

    # What the worker does

    def expect(self, pairing: Pairing, pages: int, now_s: float) -> list[HandoffOutcome]:
        """`pages` will come from `pairing.peer`; they are set aside at once if there is room.

        Check `full` first.
        """
        assert not self.full, "one transfer too many"
        transfer_id = pairing.transfer_id
        if transfer_id in self._transfers:
            return []
        reason = self._ended.get(transfer_id)
        if reason is not None:  # P refused before we heard of it
            return [FallBack(transfer_id, reason, self._settings.fallback == "recompute")]
        transfer = Incoming(pairing, pages, until_s=now_s + self._settings.offer_wait_ms / 1e3)
        self._transfers[transfer_id] = transfer
        self._heard(transfer, now_s)
        self._make_room(now_s)
        early = self._early.pop(transfer_id, None)
        if early is None:
            return []
        return self._on_offer(transfer, early.offer, early.sender_epoch, now_s)

    def on_room(self, free_pages: int, now_s: float) -> list[HandoffOutcome]:
        """The engine has `free_pages` that no sequence holds (what is set aside included)."""
        self._free_pages = free_pages
        return self._make_room(now_s)

    def on_arrived(self, transfer_id: str, bytes_moved: int, now_s: float) -> list[HandoffOutcome]:
        """D's own engine saw the bytes arrive."""
        transfer = self._transfers.get(transfer_id)
        if transfer is None or transfer.phase != "granted":
            return [Count("handoff_ignored_total")]
        return self._consume(transfer, bytes_moved, now_s)

    def on_arrival_failed(self, transfer_id: str, now_s: float) -> list[HandoffOutcome]:
        """D's own engine could not get or use the bytes."""
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            return [Count("handoff_ignored_total")]
        return self._give_up(transfer, "transfer_failed", now_s)

    def cancel(self, transfer_id: str, reason: ReleaseReason, now_s: float) -> list[HandoffOutcome]:
        """The request is not wanted any more: no fallback, only P is told."""
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            self._ended.add(transfer_id, reason, now_s)
            return []
        self._end(transfer, reason, now_s)
        return [self._say_release(transfer, reason), *self._make_room(now_s)]

    def on_peer_lost(self, peer: str, peer_epoch: int, now_s: float) -> list[HandoffOutcome]:
        """That life of P is over, and its pages with it."""
        lost = [t for t in self._transfers.values() if _is_from(t.pairing, peer, peer_epoch)]
        outcomes: list[HandoffOutcome] = []
        for transfer in lost:
            outcomes += self._fall_back(transfer, "peer_lost", now_s)
        return [*outcomes, *self._make_room(now_s)]

    # What P says

    def on_message(
        self, message: ToDecode, sender_epoch: int, now_s: float
    ) -> list[HandoffOutcome]:
        """A message of P; `sender_epoch` stands in its envelope."""
        transfer = self._transfers.get(message.transfer_id)
        if transfer is None:
            return self._answer_unknown(message, sender_epoch, now_s)
        if not _is_from(transfer.pairing, message.sender, sender_epoch):
            return [Count("handoff_ignored_total")]
        match message:
            case ReleaseHandoff():
                return [
                    *self._fall_back(transfer, message.reason, now_s),
                    *self._make_room(now_s),
                ]
            case OfferHandoff():
                return self._on_offer(transfer, message, sender_epoch, now_s)
            case ReadyHandoff() if transfer.phase == "granted":
                return self._consume(transfer, message.bytes_moved, now_s)
            case ReadyHandoff():
                return [Count("handoff_ignored_total")]

    def _on_offer(
        self, transfer: Incoming, offer: OfferHandoff, sender_epoch: int, now_s: float
    ) -> list[HandoffOutcome]:
        pairing = transfer.pairing
        about = (offer.request_id, offer.attempt)
        if about != (pairing.request_id, pairing.attempt) or not _is_from(
            pairing, offer.sender, sender_epoch
        ):
            return [Count("handoff_ignored_total")]
        if transfer.phase != "waiting":
            # Said twice: our answer may have been lost.
            return [self._say_again(transfer, now_s)]
        transfer.offer = offer
        transfer.phase = "held"
        transfer.until_s = now_s + self._settings.room_wait_ms / 1e3
        if transfer.reserved:
            return self._grant(transfer, now_s)
        return [self._say_again(transfer, now_s)]

    def _answer_unknown(
        self, message: ToDecode, sender_epoch: int, now_s: float
    ) -> list[HandoffOutcome]:
        """A word about a transfer that is not here (any more, or not yet)."""
        reason = self._ended.get(message.transfer_id)
        if isinstance(message, ReleaseHandoff):
            self._ended.add(message.transfer_id, message.reason, now_s)
            self._early.pop(message.transfer_id, None)
            return []
        if reason is None:
            if (
                isinstance(message, OfferHandoff)
                and len(self._early) < self._settings.transfers_max
            ):
                until_s = now_s + message.lease_ms / 1e3
                self._early[message.transfer_id] = _Early(message, sender_epoch, until_s)
            return []
        answer: Message = ReleaseHandoff(
            transfer_id=message.transfer_id, sender=self._name, reason=reason
        )
        if reason == "consumed":
            answer = ConsumeHandoff(transfer_id=message.transfer_id, sender=self._name)
        return [Send(answer, (message.sender,))]

    # Room

    def _make_room(self, now_s: float) -> list[HandoffOutcome]:
        """Set pages aside for whoever waits, in order of arrival, and grant what is offered."""
        outcomes: list[HandoffOutcome] = []
        for transfer in list(self._transfers.values()):
            if transfer.reserved:
                continue
            if self._reserved_pages + transfer.pages > self._free_pages:
                break
            transfer.reserved = True
            self._reserved_pages += transfer.pages
            if transfer.phase == "held":
                outcomes += self._grant(transfer, now_s)
        return outcomes

    def _grant(self, transfer: Incoming, now_s: float) -> list[HandoffOutcome]:
        assert transfer.offer is not None
        transfer.phase = "granted"
        transfer.granted_s = now_s
        transfer.until_s = now_s + self._settings.ready_wait_ms / 1e3
        granted = Granted(transfer.pairing.transfer_id, transfer.offer)
        return [granted, self._say_again(transfer, now_s)]

    # Time

    def on_tick(self, now_s: float) -> list[HandoffOutcome]:
        """Deadlines, and what has to be said again. Call it every 100 ms or so."""
        self._ended.expire(now_s)
        for transfer_id in [t for t, e in self._early.items() if e.until_s <= now_s]:
            del self._early[transfer_id]
        outcomes: list[HandoffOutcome] = []
        for transfer in list(self._transfers.values()):
            if now_s >= transfer.until_s:
                outcomes += self._give_up(transfer, "lease_expired", now_s)
            elif now_s >= transfer.say_again_s:
                outcomes.append(self._say_again(transfer, now_s))
        return outcomes

    def _say_again(self, transfer: Incoming, now_s: float) -> Send:
        """What D last said: a grant, or that it still wants the pages."""
        pairing = transfer.pairing
        self._heard(transfer, now_s)
        message: Message = RenewHandoff(transfer_id=pairing.transfer_id, sender=self._name)
        if transfer.phase == "granted":
            message = GrantHandoff(
                transfer_id=pairing.transfer_id,
                sender=self._name,
                sender_epoch=self._epoch,
                pages=transfer.pages,
            )
        return Send(message, (pairing.peer,), pairing.trace)

    def _heard(self, transfer: Incoming, now_s: float) -> None:
        transfer.say_again_s = now_s + self._settings.resend_s

    # The end

    def _consume(self, transfer: Incoming, bytes_moved: int, now_s: float) -> list[HandoffOutcome]:
        pairing = transfer.pairing
        self._end(transfer, "consumed", now_s)
        waited_ms = (now_s - transfer.granted_s) * 1e3
        consume = ConsumeHandoff(transfer_id=pairing.transfer_id, sender=self._name)
        return [
            StartDecode(pairing.transfer_id, bytes_moved, waited_ms),
            Send(consume, (pairing.peer,), pairing.trace),
            Count("handoff_consumed_total"),
        ]

    def _give_up(
        self, transfer: Incoming, reason: ReleaseReason, now_s: float
    ) -> list[HandoffOutcome]:
        """End it, tell P, go on without."""
        said = self._say_release(transfer, reason)
        outcomes = self._fall_back(transfer, reason, now_s)
        return [said, *outcomes, *self._make_room(now_s)]

    def _fall_back(
        self, transfer: Incoming, reason: ReleaseReason, now_s: float
    ) -> list[HandoffOutcome]:
        self._end(transfer, reason, now_s)
        recompute = self._settings.fallback == "recompute"
        return [
            FallBack(transfer.pairing.transfer_id, reason, recompute),
            Count(f"handoff_{reason}_total"),
        ]

    def _end(self, transfer: Incoming, reason: ReleaseReason, now_s: float) -> None:
        """The only way out of the table."""
        del self._transfers[transfer.pairing.transfer_id]
        self._ended.add(transfer.pairing.transfer_id, reason, now_s)
        if transfer.reserved:
            self._reserved_pages -= transfer.pages

    def _say_release(self, transfer: Incoming, reason: ReleaseReason) -> Send:
        pairing = transfer.pairing
        release = ReleaseHandoff(transfer_id=pairing.transfer_id, sender=self._name, reason=reason)
        return Send(release, (pairing.peer,), pairing.trace)


def _is_from(pairing: Pairing, sender: str, sender_epoch: int) -> bool:
    """Is this the peer, in the life that was expected?"""
    return sender == pairing.peer and pairing.peer_epoch in (None, sender_epoch)
