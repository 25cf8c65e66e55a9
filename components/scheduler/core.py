"""When a request runs: admission, queue, windows, attempts, deadlines. Pure.

How to think about it. A request is *waiting* in the order of its shard, or *placed* at workers. Per
shard at most one window is outstanding: the head of the queue, shown to the router that owns the
shard. Requests stay in the queue while a window is out, so a lost answer loses nothing; but a
router that took a window may have dispatched it, so whatever comes after an unanswered window uses
a higher attempt number, and what the lost answer may have started is fenced.

Everything may arrive twice or late. ``ScheduleRequest`` under a known id is answered with where the
request stands. The scheduler keeps no content: the shell strips bodies before the core sees them.
"""

from dataclasses import dataclass, field

from components.domain.liveness import PeerJoined, PeerLost, PeerTable
from components.domain.outcomes import Ask, Count, Detail, Outcome, Record, Send
from components.domain.ownership import owner_of
from components.scheduler.policies import POLICIES
from components.scheduler.settings import SchedulerSettings
from components.scheduler.state import Entry, Shard, Window
from schemas.attempt import AttemptReported, CancelAttempt
from schemas.codes import RefusalCode
from schemas.fleet import HeartbeatSent
from schemas.message import Message
from schemas.request import (
    CancelRequest,
    RequestCard,
    RequestDispatched,
    RequestQueued,
    RequestRefused,
    ScheduleRequest,
)
from schemas.routing import Plan, RoomChanged, RouteWindow, RouteWindowReply

_WATCHED = frozenset({"gateway", "router", "worker"})


@dataclass(slots=True)
class SchedulerCore:
    """See the top of the file. ``instance`` is the name under which gateways address it."""

    instance: str
    settings: SchedulerSettings
    peers: PeerTable = field(default_factory=PeerTable)
    requests: dict[str, Entry] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    tombstones: dict[str, tuple[int, float]] = field(default_factory=dict)
    windows_sent: int = 0

    def on_message(self, message: Message, now_s: float, seq: int = 0) -> list[Outcome]:
        """Take one message; unknown kinds are a bug of the shell."""
        match message:
            case ScheduleRequest():
                return self._on_schedule(message.card, now_s)
            case CancelRequest():
                return self._on_cancel(message, now_s)
            case RouteWindowReply():
                return self._on_reply(message, now_s)
            case RoomChanged():
                return self._on_room(message, now_s)
            case AttemptReported():
                return self._on_attempt(message, now_s)
            case HeartbeatSent():
                return self._on_heartbeat(message, now_s)
            case _:
                raise AssertionError(f"the scheduler does not take {message.schema_id}")

    def on_tick(self, now_s: float) -> list[Outcome]:
        """Deadlines, lost peers, unanswered windows, retries, forgotten ids."""
        outcomes: list[Outcome] = []
        for change in self.peers.on_tick(now_s):
            if isinstance(change, PeerLost):
                outcomes += self._on_lost(change, now_s)
        outcomes += self._expire(now_s)
        for name, shard in self.shards.items():
            window = shard.window
            if window and now_s - window.asked_s > self.settings.window_timeout_s:
                outcomes += self._window_failed(shard, now_s)
            outcomes += self._show(name, now_s)
        return outcomes

    def on_resume(self, now_s: float) -> list[Outcome]:
        """We were cut off: nobody was silent but us."""
        self.peers.forgive(now_s)
        return []

    # Requests come and go.

    def _on_schedule(self, card: RequestCard, now_s: float) -> list[Outcome]:
        ended = self.tombstones.get(card.request_id)
        if ended and card.attempt <= ended[0]:
            return [Count("schedule_after_end_total")]
        known = self.requests.get(card.request_id)
        if known and card.attempt <= known.card.attempt:
            return self._where_it_stands(known)
        if known:
            return self._continue(known, card, now_s)
        if card.attempt > self.settings.attempts_max:
            return [_refuse(card, "too_many_attempts", f"{card.attempt - 1} attempts failed")]
        waiting = sum(len(s.queue) for s in self.shards.values())
        if waiting >= self.settings.queue_requests_max:
            detail = f"the queue holds {waiting} requests"
            return [_refuse(card, "queue_full", detail, retry_after_ms=1000)]
        return self._enqueue(card, now_s, now_s + card.budget_ms / 1000)

    def _where_it_stands(self, entry: Entry) -> list[Outcome]:
        """The same request again: its gateway did not hear us, or we are its new connection."""
        card = entry.card
        if entry.plan is None:
            return [self._queued(card)]
        plan = entry.plan
        dispatched = RequestDispatched(
            request_id=card.request_id,
            attempt=plan.attempt,
            worker=plan.worker,
            worker_epoch=plan.worker_epoch,
            prefill_worker=plan.prefill_worker,
            router=entry.router,
            router_epoch=entry.router_epoch,
        )
        return [Send(dispatched, (card.gateway,), card.traceparent)]

    def _continue(self, known: Entry, card: RequestCard, now_s: float) -> list[Outcome]:
        """The gateway gave up an attempt: stop it wherever it runs and queue the next one."""
        outcomes = self._cancel_at_workers(known, "superseded")
        self._forget(known)
        if card.attempt > self.settings.attempts_max:
            detail = f"{card.attempt - 1} attempts failed"
            return [*outcomes, _refuse(card, "too_many_attempts", detail)]
        return outcomes + self._enqueue(card, now_s, known.deadline_s)

    def _enqueue(self, card: RequestCard, now_s: float, deadline_s: float) -> list[Outcome]:
        self.requests[card.request_id] = Entry(card, now_s, deadline_s)
        self.tombstones.pop(card.request_id, None)
        shard = self._shard(card.model)
        shard.queue.push(card.request_id, resumes=card.attempt > 1)
        return [self._queued(card), *self._show(card.model, now_s)]

    def _queued(self, card: RequestCard) -> Send:
        message = RequestQueued(
            request_id=card.request_id,
            attempt=card.attempt,
            scheduler=self.instance,
            place=self.shards[card.model].queue.place(card.request_id),
        )
        return Send(message, (card.gateway,), card.traceparent)

    def _on_cancel(self, message: CancelRequest, now_s: float) -> list[Outcome]:
        entry = self.requests.get(message.request_id)
        if entry is None:
            return []
        self._bury(entry, now_s)
        return self._cancel_at_workers(entry, message.reason)

    def _cancel_at_workers(self, entry: Entry, reason: str) -> list[Outcome]:
        return _cancel_plan(entry.plan, reason, entry.card.traceparent) if entry.plan else []

    def _forget(self, entry: Entry) -> None:
        self.requests.pop(entry.card.request_id, None)
        self._shard(entry.card.model).queue.remove(entry.card.request_id)

    def _bury(self, entry: Entry, now_s: float) -> None:
        """Forget it, but remember for a while that this id is over."""
        self._forget(entry)
        if len(self.tombstones) >= self.settings.tombstones_max:
            del self.tombstones[next(iter(self.tombstones))]
        self.tombstones[entry.card.request_id] = (entry.card.attempt, now_s)

    def _requeue(self, entry: Entry, now_s: float) -> list[Outcome]:
        """Nothing of this attempt reached the client: queue the next one ourselves."""
        card = entry.card.model_copy(update={"attempt": entry.card.attempt + 1})
        self._forget(entry)
        if card.attempt > self.settings.attempts_max:
            return [_refuse(card, "too_many_attempts", f"{card.attempt - 1} attempts failed")]
        self.requests[card.request_id] = Entry(card, entry.queued_s, entry.deadline_s, entry.shown)
        self._shard(card.model).queue.push(card.request_id, resumes=True)
        return [Count("requeued_total")]

    # Windows.

    def _shard(self, name: str) -> Shard:
        if name not in self.shards:
            self.shards[name] = Shard(POLICIES[self.settings.order]())
        return self.shards[name]

    def _router_of(self, shard: str) -> str | None:
        ready = (r for r in self.peers.of("router") if r.state == "ready" and shard in r.owns)
        return owner_of(shard, (r.instance for r in ready))

    def _show(self, name: str, now_s: float) -> list[Outcome]:
        """Show the head of a queue to its router, unless a window is out or there was no room."""
        shard = self.shards[name]
        if shard.window or not len(shard.queue) or now_s < shard.blocked_until_s:
            return []
        router = self._router_of(name)
        if router is None:
            return []
        outcomes: list[Outcome] = []
        ids = shard.queue.head(self.settings.window_cards_max)
        self.windows_sent += 1
        shard.window = Window(self.windows_sent, router, now_s, ids)
        cards = []
        for request_id in ids:
            entry = self.requests[request_id]
            cards.append(_with_budget(entry, now_s))
            if not entry.shown:
                entry.shown = True
                queue_ms = round((now_s - entry.queued_s) * 1000, 3)
                outcomes.append(
                    _record(entry.card, {"window": self.windows_sent, "queue_ms": queue_ms})
                )
        question = RouteWindow(
            shard=name, scheduler=self.instance, window=self.windows_sent, cards=tuple(cards)
        )
        return [*outcomes, Ask(question, (name, router))]

    def _on_reply(self, reply: RouteWindowReply, now_s: float) -> list[Outcome]:
        shard = self.shards.get(reply.shard)
        if shard is None or shard.window is None or shard.window.number != reply.window:
            # We stopped waiting for this answer, and what it started is already fenced.
            return [o for plan in reply.plans for o in _cancel_plan(plan, "superseded", None)]
        shard.window = None
        outcomes: list[Outcome] = []
        for plan in reply.plans:
            entry = self.requests.get(plan.request_id)
            if entry is None or entry.card.attempt != plan.attempt:
                outcomes += _cancel_plan(plan, "superseded", None)
                continue
            entry.plan, entry.router, entry.router_epoch = plan, reply.router, reply.router_epoch
            shard.queue.remove(plan.request_id)
        if reply.waits or not reply.plans:
            shard.blocked_until_s = now_s + self.settings.window_retry_s
        return outcomes + self._show(reply.shard, now_s)

    def _on_room(self, message: RoomChanged, now_s: float) -> list[Outcome]:
        shard = self.shards.get(message.shard)
        if shard is None:
            return []
        shard.blocked_until_s = now_s
        return self._show(message.shard, now_s)

    def _window_failed(self, shard: Shard, now_s: float) -> list[Outcome]:
        """No answer: its plans may run somewhere, so the next ones get higher numbers."""
        window = shard.window
        assert window is not None
        shard.window = None
        outcomes: list[Outcome] = [Count("windows_unanswered_total")]
        for request_id in window.request_ids:
            entry = self.requests.get(request_id)
            if entry and entry.plan is None:
                outcomes += self._requeue(entry, now_s)
        return outcomes

    # What workers and peers say.

    def _on_attempt(self, report: AttemptReported, now_s: float) -> list[Outcome]:
        entry = self.requests.get(report.request_id)
        if entry is None or entry.plan is None or entry.plan.attempt != report.attempt:
            return []
        if report.worker not in (entry.plan.worker, entry.plan.prefill_worker):
            return []
        if report.state == "refused":
            return self._on_nack(entry, report, now_s)
        if report.state == "ended" and report.phase != "prefill":
            self._bury(entry, now_s)
        return []

    def _on_nack(self, entry: Entry, report: AttemptReported, now_s: float) -> list[Outcome]:
        outcomes = self._cancel_at_workers(entry, "refused")
        match report.nack:
            case "too_long":
                self._bury(entry, now_s)
                return [*outcomes, _refuse(entry.card, "prompt_too_long", "no engine can hold it")]
            case "body_unavailable":
                self._bury(entry, now_s)
                return [*outcomes, _refuse(entry.card, "body_unavailable", "the body is gone")]
            case "unsupported":
                self._bury(entry, now_s)
                return [*outcomes, _refuse(entry.card, "engine_error", "the engine cannot do this")]
            case _:
                return outcomes + self._requeue(entry, now_s) + self._show(entry.card.model, now_s)

    def _on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> list[Outcome]:
        if heartbeat.component not in _WATCHED:
            return []
        outcomes: list[Outcome] = []
        for change in self.peers.on_heartbeat(heartbeat, now_s):
            match change:
                case PeerLost():
                    outcomes += self._on_lost(change, now_s)
                case PeerJoined():
                    pass
        if heartbeat.component == "router":
            for shard in heartbeat.owns:
                if shard in self.shards:
                    outcomes += self._show(shard, now_s)
        return outcomes

    def _on_lost(self, change: PeerLost, now_s: float) -> list[Outcome]:
        lost = change.heartbeat
        match lost.component:
            case "router":
                out: list[Outcome] = []
                for shard in self.shards.values():
                    if shard.window and shard.window.router == lost.instance:
                        out += self._window_failed(shard, now_s)
                return out
            case "gateway" if change.why in ("restarted", "goodbye"):
                # A silent one may come back and still wait for what it queued.
                return self._gateway_lost(lost.instance, now_s)
            case "worker":
                for entry in self.requests.values():
                    if entry.plan and entry.plan.worker == lost.instance:
                        # The gateway knows what was delivered; it will ask for the next attempt.
                        entry.orphaned_s = now_s
        return []

    def _gateway_lost(self, gateway: str, now_s: float) -> list[Outcome]:
        """Nobody waits for what this gateway queued; what runs is its workers' to end."""
        gone = [e for e in self.requests.values() if e.card.gateway == gateway and e.plan is None]
        for entry in gone:
            self._bury(entry, now_s)
        return [Count("queued_without_gateway_total", len(gone))] if gone else []

    def _expire(self, now_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for entry in list(self.requests.values()):
            orphaned = entry.orphaned_s
            if entry.plan is None and now_s > entry.deadline_s:
                self._bury(entry, now_s)
                outcomes.append(
                    _refuse(entry.card, "deadline_exceeded", "it waited longer than its deadline")
                )
            elif now_s > self.settings.orphan_after_s + (
                entry.deadline_s if orphaned is None else orphaned
            ):
                self._bury(entry, now_s)
        for request_id, (_, ended_s) in list(self.tombstones.items()):
            if now_s - ended_s <= self.settings.tombstone_s:
                break  # in order of time
            del self.tombstones[request_id]
        return outcomes

    # The journal.

    def snapshot(self) -> object:
        return {
            "peers": self.peers.to_fields(),
            "requests": [e.to_plain() for e in self.requests.values()],
            "shards": [[name, *shard.to_plain()] for name, shard in self.shards.items()],
            "tombstones": [[k, *v] for k, v in self.tombstones.items()],
            "windows_sent": self.windows_sent,
        }

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.peers.restore(state["peers"])
        entries = [Entry.from_plain(plain) for plain in state["requests"]]
        self.requests = {e.card.request_id: e for e in entries}
        self.shards = {}
        for name, ids, window, blocked_until_s in state["shards"]:
            shard = self._shard(name)
            for request_id in ids:
                shard.queue.push(request_id, resumes=self.requests[request_id].card.attempt > 1)
            shard.window = Window(*window) if window else None
            shard.blocked_until_s = blocked_until_s
        self.tombstones = {k: (attempt, at_s) for k, attempt, at_s in state["tombstones"]}
        self.windows_sent = state["windows_sent"]


def _with_budget(entry: Entry, now_s: float) -> RequestCard:
    left_ms = max(0, round((entry.deadline_s - now_s) * 1000))
    return entry.card.model_copy(update={"budget_ms": left_ms})


def _record(card: RequestCard, detail: Detail) -> Record:
    return Record(card.request_id, "scheduled", card.attempt, card.traceparent, detail)


def _refuse(card: RequestCard, code: RefusalCode, detail: str, retry_after_ms: int = 0) -> Send:
    message = RequestRefused(
        request_id=card.request_id,
        attempt=card.attempt,
        code=code,
        detail=detail,
        retry_after_ms=retry_after_ms,
    )
    return Send(message, (card.gateway,), card.traceparent)


def _cancel_plan(plan: Plan, reason: str, trace: str | None) -> list[Outcome]:
    cancel = CancelAttempt(request_id=plan.request_id, attempt=plan.attempt, reason=reason)
    workers = [plan.worker, *([plan.prefill_worker] if plan.prefill_worker else [])]
    return [Send(cancel, (w,), trace) for w in workers]
