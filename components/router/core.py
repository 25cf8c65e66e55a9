"""Where an attempt runs: the load view, the plan, the dispatch. Pure.

How to think about it. The scheduler shows a window; for each card in its order the router tries to
make a plan from the engines that are fresh and have room, reserves at once, and says for the others
why they wait. Whoever waits *starves* the shard: the next thing that makes room sends
``RoomChanged``.

Epoch. A starting router does not know what its predecessor dispatched, so it waits until every
living worker of which it has heard has reported once (at most ``warmup_s``), and takes the highest
router epoch in those reports plus one. Workers obey only the highest epoch they have seen; a NACK
``stale_epoch``, or a report that names a higher epoch than ours, makes us begin again.
"""

from dataclasses import dataclass, field

from components.domain.liveness import PeerJoined, PeerLost, PeerTable
from components.domain.outcomes import Answer, Count, Detail, Outcome, Record, Send
from components.router.placement import Pick, Placement
from components.router.settings import RouterSettings
from components.router.view import EngineView
from schemas.attempt import AttemptReported, RunAttempt
from schemas.codes import Phase, WaitReason
from schemas.engine import EngineLoadReported
from schemas.fleet import HeartbeatSent
from schemas.message import Message
from schemas.request import RequestCard, RequestDispatched
from schemas.routing import CardWaits, Plan, RoomChanged, RouteWindow, RouteWindowReply


@dataclass(slots=True)
class RouterCore:
    """See the top of the file. ``epoch`` is 0 until the warm-up is over."""

    instance: str
    settings: RouterSettings
    peers: PeerTable = field(default_factory=PeerTable)
    views: dict[str, EngineView] = field(default_factory=dict)
    #: Reports of workers whose heartbeat was not heard yet.
    early: dict[str, tuple[EngineLoadReported, int, float]] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    starved: list[str] = field(default_factory=list)
    epoch: int = 0
    epoch_floor: int = 0
    warm_from_s: float | None = None

    def on_message(self, message: Message, now_s: float, seq: int = 0) -> list[Outcome]:
        """Take one message; unknown kinds are a bug of the shell."""
        match message:
            case RouteWindow():
                return self._on_window(message, now_s)
            case EngineLoadReported():
                return self._on_report(message, seq, now_s)
            case AttemptReported():
                return self._on_attempt(message, now_s)
            case HeartbeatSent():
                return self._on_heartbeat(message, now_s)
            case _:
                raise AssertionError(f"the router does not take {message.schema_id}")

    def on_tick(self, now_s: float) -> list[Outcome]:
        """Lost workers, and the end of the warm-up."""
        outcomes: list[Outcome] = []
        for change in self.peers.on_tick(now_s):
            if isinstance(change, PeerLost):
                outcomes += self._on_lost(change.heartbeat)
        return outcomes + self._warm_up(now_s)

    def on_resume(self, now_s: float) -> list[Outcome]:
        """We were cut off: nobody was silent but us. Reports come anew within a second."""
        self.peers.forgive(now_s)
        return []

    # Warm-up and epoch.

    def _warm_up(self, now_s: float) -> list[Outcome]:
        if self.epoch:
            return []
        if self.warm_from_s is None:
            self.warm_from_s = now_s
        everybody = bool(self.views) and all(v.report for v in self.views.values())
        # Heartbeats come every 250 ms: before that, "everybody" is not everybody.
        waited_s = now_s - self.warm_from_s
        if waited_s < self.settings.warmup_s and not (everybody and waited_s >= 0.3):
            return []
        seen = [v.report.router_epoch_max for v in self.views.values() if v.report]
        self.epoch = max([self.epoch_floor, *seen]) + 1
        return [Count("epochs_begun_total"), *self._room_for_starved()]

    def _step_down(self, seen_epoch: int) -> list[Outcome]:
        """Somebody dispatched under a higher epoch: forget ours, look again, go above it."""
        self.epoch_floor = max(self.epoch_floor, seen_epoch)
        self.epoch = 0
        self.warm_from_s = None
        for view in self.views.values():
            view.open.clear()
            view.dispatched = view.admitted = 0
        return [Count("step_downs_total")]

    # The view.

    def _on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> list[Outcome]:
        if heartbeat.component != "worker":
            return []
        outcomes: list[Outcome] = []
        for change in self.peers.on_heartbeat(heartbeat, now_s):
            match change:
                case PeerJoined():
                    outcomes += self._on_joined(heartbeat)
                case PeerLost():
                    outcomes += self._on_lost(change.heartbeat)
        if (view := self.views.get(heartbeat.instance)) is not None:
            view.heartbeat = heartbeat
        return outcomes

    def _on_joined(self, heartbeat: HeartbeatSent) -> list[Outcome]:
        view = EngineView(heartbeat)
        self.views[heartbeat.instance] = view
        early = self.early.pop(heartbeat.instance, None)
        if early:
            view.on_report(*early, self.instance, self.epoch)
        return self._room_for_starved()

    def _on_lost(self, heartbeat: HeartbeatSent) -> list[Outcome]:
        view = self.views.get(heartbeat.instance)
        if view and view.heartbeat.process_epoch == heartbeat.process_epoch:
            del self.views[heartbeat.instance]
        return []

    def _on_report(self, report: EngineLoadReported, seq: int, now_s: float) -> list[Outcome]:
        view = self.views.get(report.engine)
        if view is None or report.engine_epoch > view.heartbeat.process_epoch:
            if len(self.early) < self.peers.peers_max or report.engine in self.early:
                self.early[report.engine] = (report, seq, now_s)
            return []
        if not view.on_report(report, seq, now_s, self.instance, self.epoch):
            return [Count("old_reports_total")]
        if self.epoch and report.router_epoch_max > self.epoch:
            return self._step_down(report.router_epoch_max)
        return self._room_for_starved()

    def _on_attempt(self, report: AttemptReported, now_s: float) -> list[Outcome]:
        view = self.views.get(report.worker)
        if view is None or view.heartbeat.process_epoch != report.worker_epoch:
            return []
        if report.nack == "stale_epoch" and report.router == self.instance:
            # The worker's next report names the epoch; until then go at least above our own.
            return self._step_down(self.epoch)
        if report.state in ("refused", "ended") and view.end(_key(report)):
            return self._room_for_starved()
        return []

    # Windows.

    def _on_window(self, window: RouteWindow, now_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        plans: list[Plan] = []
        waits: list[CardWaits] = []
        for card in window.cards:
            planned = self._place(card, window.shard, now_s) if self.epoch else "warming_up"
            if isinstance(planned, str):
                waits.append(CardWaits(request_id=card.request_id, reason=planned))
                continue
            plans.append(planned[0])
            outcomes += planned[1]
        if waits and window.shard not in self.starved:
            self.starved.append(window.shard)
        reply = RouteWindowReply(
            shard=window.shard,
            window=window.window,
            router=self.instance,
            router_epoch=self.epoch,
            plans=tuple(plans),
            waits=tuple(waits),
        )
        return [*outcomes, Answer(reply, (window.scheduler, str(window.window)))]

    def _place(
        self, card: RequestCard, shard: str, now_s: float
    ) -> tuple[Plan, list[Outcome]] | WaitReason:
        """A plan and its dispatch, or why the card waits."""
        placement = Placement(self.settings, self.views, self.last)
        picked = placement.pick_pair(card, shard, now_s)
        if isinstance(picked, str):
            return picked
        worker, prefill = picked
        for pick in (worker, prefill):
            if pick:
                self.last[pick.turn] = pick.worker
        plan = _plan(card, worker, prefill)
        return plan, self._dispatch(card, plan, worker, prefill)

    # Dispatch.

    def _dispatch(
        self, card: RequestCard, plan: Plan, worker: Pick, prefill: Pick | None
    ) -> list[Outcome]:
        """Decode first, so that it expects the offer; then prefill; then the gateway hears."""
        trace = card.traceparent
        outcomes: list[Outcome] = []
        if prefill is None:
            outcomes.append(self._run(card, plan, "aggregated", worker.view, None))
        else:
            outcomes.append(self._run(card, plan, "decode", worker.view, prefill.view))
            outcomes.append(self._run(card, plan, "prefill", prefill.view, worker.view))
        dispatched = RequestDispatched(
            request_id=card.request_id,
            attempt=plan.attempt,
            worker=plan.worker,
            worker_epoch=plan.worker_epoch,
            prefill_worker=plan.prefill_worker,
            router=self.instance,
            router_epoch=self.epoch,
        )
        prefills = len(prefill.costs) if prefill else 0
        reasons = _reasons(self.settings.policy, plan, worker, prefills)
        routed = Record(card.request_id, "routed", plan.attempt, trace, reasons)
        sent = Record(
            card.request_id,
            "dispatched",
            plan.attempt,
            trace,
            {
                "worker": plan.worker,
                "prefill_worker": plan.prefill_worker,
                "router_epoch": self.epoch,
                "dispatch_seq": worker.view.dispatched,
            },
        )
        return [*outcomes, Send(dispatched, (card.gateway,), trace), routed, sent]

    def _run(
        self,
        card: RequestCard,
        plan: Plan,
        phase: Phase,
        view: EngineView,
        peer: EngineView | None,
    ) -> Send:
        tokens = card.prompt_tokens + card.emitted_tokens
        sequences = 1 if phase == "prefill" else card.choices
        dispatch_seq = view.dispatch(_attempt_key(plan.request_id, plan.attempt), sequences, tokens)
        message = RunAttempt(
            card=card,
            phase=phase,
            worker_epoch=view.heartbeat.process_epoch,
            router=self.instance,
            router_epoch=self.epoch,
            dispatch_seq=dispatch_seq,
            transfer_id=plan.transfer_id,
            peer=peer.heartbeat.instance if peer else None,
            peer_epoch=peer.heartbeat.process_epoch if peer else None,
        )
        return Send(message, (view.heartbeat.instance,), card.traceparent)

    def _room_for_starved(self) -> list[Outcome]:
        """Invite the next window of each shard whose last one found no room."""
        if not self.epoch or not self.starved:
            return []
        starved, self.starved = self.starved, []
        return [
            Send(RoomChanged(shard=shard, router=self.instance, room=self._free(shard)), (shard,))
            for shard in starved
        ]

    def _free(self, shard: str) -> int:
        views = [v for v in self.views.values() if v.heartbeat.shard == shard and v.report]
        return sum(max(0, v.report.seqs_max - v.load) for v in views if v.report)

    @property
    def shards(self) -> tuple[str, ...]:
        """Shards this router answers for; none before the warm-up is over."""
        if not self.epoch:
            return ()
        return tuple(sorted({v.heartbeat.shard for v in self.views.values() if v.heartbeat.shard}))

    # The journal.

    def snapshot(self) -> object:
        return {
            "peers": self.peers.to_fields(),
            "views": [[n, v.to_plain()] for n, v in self.views.items()],
            "early": [[n, r.model_dump(), seq, at_s] for n, (r, seq, at_s) in self.early.items()],
            "last": [list(turn) for turn in self.last.items()],
            "starved": self.starved,
            "epoch": self.epoch,
            "epoch_floor": self.epoch_floor,
            "warm_from_s": self.warm_from_s,
        }

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.peers.restore(state["peers"])
        self.views = {n: EngineView.from_plain(f) for n, f in state["views"]}
        self.early = {
            n: (EngineLoadReported.model_validate(r), seq, at_s)
            for n, r, seq, at_s in state["early"]
        }
        self.last = dict(state["last"])
        self.starved = list(state["starved"])
        self.epoch = state["epoch"]
        self.epoch_floor = state["epoch_floor"]
        self.warm_from_s = state["warm_from_s"]


def _plan(card: RequestCard, worker: Pick, prefill: Pick | None) -> Plan:
    return Plan(
        request_id=card.request_id,
        attempt=card.attempt,
        worker=worker.worker,
        worker_epoch=worker.view.heartbeat.process_epoch,
        prefill_worker=prefill.worker if prefill else None,
        prefill_epoch=prefill.view.heartbeat.process_epoch if prefill else None,
        transfer_id=f"{card.request_id}.{card.attempt}" if prefill else None,
        candidates=(prefill.costs if prefill else ()) + worker.costs,
    )


def _reasons(policy: str, plan: Plan, worker: Pick, prefills: int) -> Detail:
    """Who was chosen by which policy, and what was known of everybody who could have been.

    The first ``prefills`` candidates could have computed the prompt only.
    ``pool`` is the one that the request belongs to, ``role`` that of the engine that serves it.
    """
    candidates = plan.candidates
    by_pool: Detail = {}
    if worker.pool is not None:
        by_pool = {"pool": worker.pool, "role": worker.view.heartbeat.role}
    return {
        "policy": policy,
        **by_pool,
        "chosen": [c.worker for c in candidates if c.chosen],
        "candidates": [c.worker for c in candidates],
        "prefill_candidates": prefills,
        "loads": [c.load for c in candidates],
        "rooms": [c.room for c in candidates],
        "state_seqs": [c.state_seq for c in candidates],
        "state_ages_ms": [c.state_age_ms for c in candidates],
        "queued_tokens": [c.queued_tokens for c in candidates],
        "free_pages": [c.free_pages for c in candidates],
        "costs_ms": [c.cost_ms for c in candidates],
    }


def _attempt_key(request_id: str, attempt: int) -> str:
    return f"{request_id}.{attempt}"


def _key(report: AttemptReported) -> str:
    return _attempt_key(report.request_id, report.attempt)
