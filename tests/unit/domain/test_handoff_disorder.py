"""Both sides under disorder: messages lost, doubled and overtaken, links broken, workers killed.

The world here is what the machines promise nothing about: a network, a link, two processes. After
every step and at the end the promises must hold.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from components.domain.handoff import (
    DecodeSide,
    FallBack,
    FreeKv,
    Granted,
    HandoffSettings,
    MoveKv,
    Pairing,
    PrefillSide,
    StartDecode,
    StopMoving,
    StopPrefill,
)
from components.domain.outcomes import Count, Send

SETTINGS = HandoffSettings(
    lease_ms=3_000,
    hold_ms_max=9_000,
    offer_wait_ms=12_000,
    room_wait_ms=5_000,
    ready_wait_ms=4_000,
    resend_ms=1_000,
    ended_ttl_ms=20_000,
    ended_max=64,
)
TICK_S = 0.25
D_WAIT_S_MAX = (12_000 + 5_000 + 4_000) / 1e3 + TICK_S
FREE_PAGES = 6
P, D = "prefill-0", "decode-0"
MOSTLY = st.sampled_from([True, True, True, False])


@dataclass
class PrefillWorld:
    """One life of P with its engine and link."""

    epoch: int
    side: PrefillSide
    computing: set[str] = field(default_factory=set)
    held: dict[str, float] = field(default_factory=dict)  # pages, since when
    moving: dict[str, float] = field(default_factory=dict)  # since when
    moved: set[str] = field(default_factory=set)
    freed: list[str] = field(default_factory=list)


@dataclass
class DecodeWorld:
    """One life of D with its engine."""

    epoch: int
    side: DecodeSide
    waiting: dict[str, float] = field(default_factory=dict)  # since when
    granted: set[str] = field(default_factory=set)
    outcome: dict[str, str] = field(default_factory=dict)


class Handoff(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.number = 0
        self.network: list[tuple[str, object, int]] = []  # to, message, sender's epoch
        self.p = self._new_p(1)
        self.d = self._new_d(1)

    def _new_p(self, epoch):
        return PrefillWorld(epoch, PrefillSide(P, epoch, SETTINGS))

    def _new_d(self, epoch):
        world = DecodeWorld(epoch, DecodeSide(D, epoch, SETTINGS))
        world.side.on_room(FREE_PAGES, self.now_s)
        return world

    # What the two processes do with outcomes

    def _do_p(self, outcomes):
        p = self.p
        for outcome in outcomes:
            match outcome:
                case Send():
                    self.network.append((outcome.to[0], outcome.message, p.epoch))
                case StopPrefill():
                    p.computing.discard(outcome.transfer_id)
                case MoveKv():
                    assert outcome.transfer_id in p.held
                    p.moving[outcome.transfer_id] = self.now_s
                case StopMoving():
                    del p.moving[outcome.transfer_id]
                case FreeKv():
                    assert outcome.transfer_id not in p.moving, "freed under a transfer"
                    assert outcome.transfer_id not in p.freed, "freed twice"
                    p.held.pop(outcome.transfer_id, None)
                    p.freed.append(outcome.transfer_id)
                case Count():
                    pass
                case other:
                    raise AssertionError(other)

    def _do_d(self, outcomes):
        d = self.d
        for outcome in outcomes:
            match outcome:
                case Send():
                    self.network.append((outcome.to[0], outcome.message, d.epoch))
                case Granted():
                    assert outcome.transfer_id in d.waiting
                    assert outcome.transfer_id not in d.granted, "granted twice"
                    d.granted.add(outcome.transfer_id)
                case StartDecode():
                    assert outcome.transfer_id in d.granted
                    assert outcome.transfer_id in self.moved_ever, "decodes without bytes"
                    self._end_d(outcome.transfer_id, "decode")
                case FallBack():
                    self._end_d(outcome.transfer_id, "recompute")
                case Count():
                    pass
                case other:
                    raise AssertionError(other)

    def _end_d(self, transfer_id, how):
        assert transfer_id not in self.d.outcome, "ended twice"
        self.d.outcome[transfer_id] = how
        waited_s = self.now_s - self.d.waiting.pop(transfer_id)
        assert waited_s <= D_WAIT_S_MAX

    @property
    def moved_ever(self):
        return self.p.moved | getattr(self, "moved_before", set())

    # What happens

    @rule(p_first=st.booleans(), d_hears=MOSTLY, p_hears=MOSTLY, pages=st.integers(1, 4))
    def dispatch(self, p_first, d_hears, p_hears, pages):
        self.number += 1
        transfer_id = f"t{self.number}"
        to_d = Pairing(transfer_id, f"r{self.number}", 1, D, self.d.epoch)
        to_p = Pairing(transfer_id, f"r{self.number}", 1, P, self.p.epoch)

        def at_p():
            if p_hears:
                self.p.computing.add(transfer_id)
                self._do_p(self.p.side.expect(to_d, self.now_s))

        if p_first:
            at_p()
        if d_hears:
            self.d.waiting[transfer_id] = self.now_s
            self._do_d(self.d.side.expect(to_p, pages, self.now_s))
        if not p_first:
            at_p()

    @precondition(lambda self: self.p.computing)
    @rule(data=st.data())
    def prefilled(self, data):
        transfer_id = data.draw(st.sampled_from(sorted(self.p.computing)))
        self.p.computing.remove(transfer_id)
        self.p.held[transfer_id] = self.now_s
        self._do_p(self.p.side.on_prefilled(transfer_id, 64, 4, 4096, {}, self.now_s))

    @precondition(lambda self: self.p.moving)
    @rule(data=st.data(), fails=st.booleans())
    def link_ends(self, data, fails):
        transfer_id = data.draw(st.sampled_from(sorted(self.p.moving)))
        del self.p.moving[transfer_id]
        if fails:
            self._do_p(self.p.side.on_move_failed(transfer_id, self.now_s))
        else:
            self.p.moved.add(transfer_id)
            self._do_p(self.p.side.on_moved(transfer_id, 4096, self.now_s))

    @rule(computed=MOSTLY, rounds=st.integers(0, 3))
    def goes_well(self, computed, rounds):
        """A new transfer, and a network that delivers everything for a while."""
        self.dispatch(p_first=False, d_hears=True, p_hears=True, pages=1)
        transfer_id = f"t{self.number}"
        if computed and transfer_id in self.p.computing:
            self.p.computing.remove(transfer_id)
            self.p.held[transfer_id] = self.now_s
            self._do_p(self.p.side.on_prefilled(transfer_id, 64, 4, 4096, {}, self.now_s))
        for _ in range(rounds):
            arriving, self.network = self.network, []
            for to, message, epoch in arriving:
                self._deliver(to, message, epoch)

    @precondition(lambda self: self.network)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "deliver", "double", "lose"]))
    def network_moves(self, data, fate):
        place = data.draw(st.integers(0, len(self.network) - 1))
        to, message, epoch = self.network[place]
        if fate != "double":
            del self.network[place]
        if fate != "lose":
            self._deliver(to, message, epoch)

    def _deliver(self, to, message, epoch):
        if to == P:
            self._do_p(self.p.side.on_message(message, epoch, self.now_s))
        else:
            self._do_d(self.d.side.on_message(message, epoch, self.now_s))

    @rule(ticks=st.integers(1, 20))
    def time_passes(self, ticks):
        for _ in range(ticks):
            self.now_s += TICK_S
            self._do_p(self.p.side.on_tick(self.now_s))
            self._do_d(self.d.side.on_tick(self.now_s))

    @rule(pages=st.sampled_from([0, 1, 2, FREE_PAGES, FREE_PAGES]))
    def room_changes(self, pages):
        self._do_d(self.d.side.on_room(pages, self.now_s))

    @rule(data=st.data(), reason=st.sampled_from(["cancelled", "superseded"]))
    def cancelled(self, data, reason):
        if not self.number:
            return
        transfer_id = f"t{data.draw(st.integers(1, self.number))}"
        if data.draw(st.booleans()):
            self._do_p(self.p.side.cancel(transfer_id, reason, self.now_s))
        if data.draw(st.booleans()):
            self.d.waiting.pop(transfer_id, None)
            self._do_d(self.d.side.cancel(transfer_id, reason, self.now_s))

    @precondition(lambda self: self.p.epoch < 3)
    @rule(noticed=st.booleans())
    def p_dies(self, noticed):
        old = self.p.epoch
        self.moved_before = self.moved_ever
        self.p = self._new_p(old + 1)
        if noticed:
            self._do_d(self.d.side.on_peer_lost(P, old, self.now_s))

    @precondition(lambda self: self.d.epoch < 3)
    @rule(noticed=st.booleans())
    def d_dies(self, noticed):
        old = self.d.epoch
        self.d = self._new_d(old + 1)
        if noticed:
            self._do_p(self.p.side.on_peer_lost(D, old, self.now_s))

    # What must hold

    @invariant()
    def nothing_moves_without_a_lease(self):
        for transfer_id, since_s in self.p.moving.items():
            assert transfer_id in self.p.held, "moves freed pages"
            assert self.now_s - since_s <= SETTINGS.lease_ms / 1e3

    @invariant()
    def every_lease_has_its_pages(self):
        assert self.p.side.leases == len(self.p.held)
        longest_s = SETTINGS.hold_ms_max / 1e3
        assert all(self.now_s - since_s <= longest_s for since_s in self.p.held.values())

    @invariant()
    def d_waits_for_nobody_past_its_deadline(self):
        assert set(self.d.waiting) == set(self.d.side._transfers)
        for since_s in self.d.waiting.values():
            assert self.now_s - since_s <= D_WAIT_S_MAX

    @invariant()
    def pages_set_aside_are_those_of_the_table(self):
        reserved = [t.pages for t in self.d.side._transfers.values() if t.reserved]
        assert self.d.side.reserved_pages == sum(reserved)
        assert self.d.side.leases == len(reserved)

    def teardown(self):
        """Silence: nothing is said any more, and still everything ends."""
        self.network.clear()
        for transfer_id in sorted(self.p.computing):  # an engine ends what it began
            self.p.held[transfer_id] = self.now_s
            self._do_p(self.p.side.on_prefilled(transfer_id, 64, 4, 4096, {}, self.now_s))
        self.p.computing.clear()
        for _ in range(int(60 / TICK_S)):
            self.now_s += TICK_S
            self._do_p(self.p.side.on_tick(self.now_s))
            self._do_d(self.d.side.on_tick(self.now_s))
            self.network.clear()
        assert (len(self.p.side), self.p.side.leases, self.p.held) == (0, 0, {})
        assert (len(self.d.side), self.d.side.reserved_pages, self.d.waiting) == (0, 0, {})
        assert len(self.p.side._ended) == len(self.d.side._ended) == len(self.d.side._early) == 0


TestHandoffUnderDisorder = Handoff.TestCase
TestHandoffUnderDisorder.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
