"""What becomes of each request between its card and its last token. Pure.

How to think about it. A request is *submitted* (no scheduler has confirmed it), *queued*,
*dispatched* (a worker has it), *streaming* (tokens came). Two numbers fence everything: the
*attempt*, which only rises, and the *index* of each choice, which only grows. Whatever carries a
lower attempt is dropped; whatever lies before the index is a duplicate; whatever lies behind it
waits until the worker has filled the gap.

When the worker that emits is lost, the attempt is given up: its number rises, the ids that arrived
go into the body, and the request is scheduled again. A higher attempt that did not start from those
ids (a scheduler that queued anew what it believed lost) is refused, because its text would not fit.
Ids that only count chunks (*opaque*) say nothing to another worker: a request whose client has some
ends with its attempt.

Nothing here waits for a message that may never come: whatever is not answered is asked again, and
what no repair brings back ends the attempt, then the request, at its deadline at the latest.

Methods without an underscore take an input and return what it causes; the others add to ``_out``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from components.domain.bodies import with_emitted
from components.domain.liveness import PeerJoined, PeerLost, PeerTable
from components.domain.outcomes import Ask, Count, Detail, Record, Send
from components.domain.ownership import owner_of
from components.gateway.repair import Repairs
from components.gateway.request import Deliver, End, GatewayOutcome, NewRequest, Request
from components.gateway.settings import GatewaySettings
from components.gateway.streams import FRESH, GAP, ChoiceStream
from schemas.attempt import CancelAttempt, ResumeStreams, StreamPosition
from schemas.body import BODY_INLINE_BYTES_MAX, BodyPublished
from schemas.codes import RefusalCode, RequestStep
from schemas.fleet import HeartbeatSent
from schemas.frames import Entry
from schemas.message import Message
from schemas.request import (
    CancelRequest,
    RequestDispatched,
    RequestQueued,
    RequestRefused,
    ScheduleRequest,
)

#: Ended requests whose late tokens we expect; the oldest is forgotten first.
ENDED_MAX: Final = 4096
#: An engine ends a choice so when it failed, not when the text is complete.
_FAILED: Final = frozenset({"abort", "error"})
_SERVING: Final = frozenset({"ready", "degraded"})
_FOREVER: Final = float("inf")


@dataclass(slots=True)
class GatewayCore:
    """See the top of the file."""

    settings: GatewaySettings
    requests: dict[str, Request] = field(default_factory=dict)
    schedulers: PeerTable = field(default_factory=lambda: PeerTable(stuck_after_s=_FOREVER))
    routers: PeerTable = field(default_factory=lambda: PeerTable(stuck_after_s=_FOREVER))
    workers: PeerTable = field(default_factory=PeerTable)
    _repairs: Repairs = field(init=False)
    _by_worker: dict[str, dict[str, None]] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)
    #: When any heartbeat was last heard; None before the first.
    _heard_s: float | None = None
    _out: list[GatewayOutcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._repairs = Repairs(self.settings.resume_retry_s)
        for table in (self.schedulers, self.routers, self.workers):
            table.silent_after_s = self.settings.silent_after_s
        self.workers.stuck_after_s = self.settings.stuck_after_s

    # In: requests, messages, frames, time.

    def accept(self, new: NewRequest, now_s: float) -> tuple[Request, list[GatewayOutcome]]:
        """Take a request in; its first outcomes record it, submit it and publish its body."""
        card = new.card
        request = Request(
            card=card,
            body=new.body,
            arrived_s=new.arrived_s,
            deadline_s=now_s + card.budget_ms / 1000,
            streams=[ChoiceStream(self.settings.held_entries_max) for _ in range(card.choices)],
            end_token_ids=new.end_token_ids,
            min_tokens=new.min_tokens,
        )
        self.requests[card.request_id] = request
        detail: Detail = {
            "model": card.model,
            "tenant": card.tenant,
            "prompt_tokens": card.prompt_tokens,
            "output_tokens_max": card.output_tokens_max,
            "choices": card.choices,
            "body_bytes": len(new.body),
        }
        self._record(request, "accepted", detail)
        self._submit(request, now_s)
        body = BodyPublished(request_id=card.request_id, body=new.body)
        self._out.append(Send(body, (card.request_id,), card.traceparent))
        return request, self._outcomes()

    def cancel(self, request_id: str, reason: str, now_s: float) -> list[GatewayOutcome]:
        """Nobody waits for it any more; harmless when it is over."""
        request = self.requests.get(request_id)
        if request is not None:
            detail: Detail = {"reason": reason, "emitted_tokens": request.emitted_tokens}
            self._record(request, "cancelled", detail)
            self._cancel_everywhere(request, reason)
            self._close(request, now_s)
        return self._outcomes()

    def fail(
        self, request_id: str, code: RefusalCode, detail: str, now_s: float
    ) -> list[GatewayOutcome]:
        """End it from our side, with a reason for its client; harmless when it is over."""
        request = self.requests.get(request_id)
        if request is not None:
            self._end(request, code, detail, now_s)
        return self._outcomes()

    def on_message(self, message: Message, now_s: float) -> list[GatewayOutcome]:
        """Take one message; unknown kinds are a bug of the shell."""
        match message:
            case HeartbeatSent():
                self._on_heartbeat(message, now_s)
            case RequestQueued():
                self._on_queued(message, now_s)
            case RequestDispatched():
                self._on_dispatched(message, now_s)
            case RequestRefused():
                self._on_refused(message, now_s)
            case _:
                raise AssertionError(f"the gateway does not take {message.schema_id}")
        return self._outcomes()

    def on_frame(
        self, worker: str, worker_epoch: int, entries: Iterable[Entry], now_s: float
    ) -> list[GatewayOutcome]:
        """Take the entries of one token frame (``schemas.frames``)."""
        self._on_entries(worker, worker_epoch, entries, now_s)
        if self._repairs:
            self._ask(now_s)
        return self._outcomes()

    def on_resumed(
        self,
        worker: str,
        asked: ResumeStreams,
        entries: Sequence[Entry] | None,
        unknown: Sequence[StreamPosition],
        now_s: float,
        *,
        more: bool = False,
    ) -> list[GatewayOutcome]:
        """Take the answer to a resume question; ``entries`` None says that there was none."""
        self._repairs.answered(worker, now_s, ask_at_once=more)
        if entries is None:
            self._out.append(Count("resumes_failed_total"))
            return self._outcomes()
        lives = self.workers.get(worker)
        self._on_entries(worker, lives.process_epoch if lives else 0, entries, now_s)
        missing = {(p.request_id, p.attempt) for p in unknown}
        for request_id, attempt in {(p.request_id, p.attempt): None for p in asked.positions}:
            request = self.requests.get(request_id)
            if request is None or request.attempt != attempt or request.worker != worker:
                continue
            request.heard_s = now_s
            if (request_id, attempt) in missing:
                self._unknown_to_worker(request, now_s)
            elif not more and not request.has_gap:
                self._repairs.satisfied(worker, request_id)
                request.gap_since_s = None
                request.unknown = 0
        self._ask(now_s)
        return self._outcomes()

    def on_reconnect(self, now_s: float) -> list[GatewayOutcome]:
        """The bus was away: what was sent may be lost, and silence says nothing about peers."""
        self._forgive(now_s)
        for request in list(self.requests.values()):
            if request.waits:
                self._submit(request, now_s)
            else:
                self._want(request, now_s)
        self._ask(now_s)
        return self._outcomes()

    def on_tick(self, now_s: float) -> list[GatewayOutcome]:
        """Lost peers, deadlines, unanswered submissions, silent streams, open gaps."""
        if not self._deaf(now_s):
            for table in (self.schedulers, self.routers, self.workers):
                for change in table.on_tick(now_s):
                    self._on_change(change, now_s)
        for request in list(self.requests.values()):
            if now_s >= request.check_s:
                self._check(request, now_s)
        self._ask(now_s)
        return self._outcomes()

    def _outcomes(self) -> list[GatewayOutcome]:
        out, self._out = self._out, []
        return out

    # Peers.

    def _on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> None:
        if self._heard_s is not None and self._deaf(now_s):
            self._forgive(now_s)
        self._heard_s = now_s
        match heartbeat.component:
            case "scheduler":
                before = self.schedulers.get(heartbeat.instance)
                self._changes(self.schedulers, heartbeat, now_s)
                if before and before.state not in _SERVING and heartbeat.state in _SERVING:
                    self._submit_homeless(now_s)
            case "router":
                self._changes(self.routers, heartbeat, now_s)
            case "worker":
                self._changes(self.workers, heartbeat, now_s)
            case _:
                pass  # the others, and ourselves, only show that we can hear

    def _changes(self, table: PeerTable, heartbeat: HeartbeatSent, now_s: float) -> None:
        for change in table.on_heartbeat(heartbeat, now_s):
            self._on_change(change, now_s)

    def _on_change(self, change: PeerJoined | PeerLost, now_s: float) -> None:
        component = change.heartbeat.component
        if component == "scheduler":
            self._submit_homeless(now_s)
        elif component == "worker":
            match change:
                case PeerJoined():
                    pass
                case PeerLost():
                    self._on_worker_lost(change, now_s)
                case _:
                    assert_never(change)

    def _on_worker_lost(self, change: PeerLost, now_s: float) -> None:
        lost = change.heartbeat
        self._repairs.forget(lost.instance)
        for request_id in list(self._by_worker.get(lost.instance, ())):
            request = self.requests[request_id]
            if request.worker_epoch <= lost.process_epoch:
                self._interrupt(request, f"worker_{change.why}", now_s)

    def _deaf(self, now_s: float) -> bool:
        """When everybody is silent at once, it is we who cannot hear."""
        return self._heard_s is None or now_s - self._heard_s > self.settings.deaf_after_s

    def _forgive(self, now_s: float) -> None:
        self._heard_s = now_s
        for table in (self.schedulers, self.routers, self.workers):
            table.forgive(now_s)
        for request in self.requests.values():
            if request.gap_since_s is not None:
                request.gap_since_s = now_s

    # The scheduler.

    def _submit(self, request: Request, now_s: float) -> None:
        """Ask the owner of the model to schedule it; without one it waits for one to come."""
        serving = {s.instance: s for s in self.schedulers.of("scheduler") if s.state in _SERVING}
        owner = owner_of(request.card.model, serving)
        request.state = "submitted"
        if owner is None:
            request.scheduler = None
            request.check_s = request.deadline_s
            return
        request.scheduler = (owner, serving[owner].process_epoch)
        request.check_s = min(request.deadline_s, now_s + self.settings.submit_retry_s)
        card = request.card.model_copy(
            update={
                "attempt": request.attempt,
                "budget_ms": max(0, round((request.deadline_s - now_s) * 1000)),
                "emitted_tokens": request.emitted_tokens,
                "body_bytes": len(request.body),
            }
        )
        inline = len(request.body) <= BODY_INLINE_BYTES_MAX
        message = ScheduleRequest(card=card, body=request.body if inline else None)
        self._out.append(Send(message, (owner,), request.trace))

    def _submit_homeless(self, now_s: float) -> None:
        """Schedulers came or went: submit what stands in the queue of none that lives."""
        for request in self.requests.values():
            if request.waits and not (
                request.scheduler and self.schedulers.lives(*request.scheduler)
            ):
                self._submit(request, now_s)

    def _on_queued(self, message: RequestQueued, now_s: float) -> None:
        request = self.requests.get(message.request_id)
        if request is None or not request.waits or message.attempt < request.attempt:
            return
        request.attempt = message.attempt
        request.attempt_seen = max(request.attempt_seen, message.attempt)
        request.state = "queued"
        request.unanswered = 0
        request.check_s = min(request.deadline_s, now_s + self.settings.requeue_check_s)

    def _on_refused(self, message: RequestRefused, now_s: float) -> None:
        request = self.requests.get(message.request_id)
        if request is None or message.attempt < request.attempt:
            return
        if message.code == "shutting_down" and request.waits:
            # Its place in that queue is lost, the request is not: the next scheduler gets it.
            request.scheduler = None
            request.check_s = min(request.deadline_s, now_s + self.settings.submit_retry_s)
            return
        self._end(request, message.code, message.detail, now_s, message.retry_after_ms)

    # The worker.

    def _on_dispatched(self, message: RequestDispatched, now_s: float) -> None:
        request = self.requests.get(message.request_id)
        known = request is not None and (
            (message.attempt == request.attempt and message.worker == request.worker)
            or self._adopt(
                request,
                message.attempt,
                (message.worker, message.worker_epoch),
                message.router_epoch,
                now_s,
            )
        )
        if request is None or not known:
            trace = request.trace if request else None
            self._cancel_at(
                message.request_id, message.attempt, message.worker, "superseded", trace
            )
            self._cancel_at(
                message.request_id, message.attempt, message.prefill_worker, "superseded", trace
            )
            return
        request.worker_epoch = message.worker_epoch
        request.prefill_worker = message.prefill_worker
        request.router_epoch = max(request.router_epoch, message.router_epoch)

    def _adopt(
        self,
        request: Request,
        attempt: int,
        worker: tuple[str, int],
        router_epoch: int,
        now_s: float,
    ) -> bool:
        """Does ``worker`` run the attempt that counts? Takes it for the emitting one if so."""
        if attempt < request.attempt:
            return False
        if attempt == request.attempt and request.worker is not None:
            # Routers that followed each other dispatched it twice: the later one, unless it runs.
            if request.progressed or router_epoch <= request.router_epoch:
                return False
        elif attempt > request.attempt and request.progressed:
            # It started from an older body than what the client has: not a continuation of ours.
            request.attempt_seen = max(request.attempt_seen, attempt)
            if worker[0] == request.worker:
                self._interrupt(request, "superseded", now_s)
            return False
        if request.worker is not None:
            self._cancel_attempt(request, "superseded")
            self._leave_worker(request)
        if attempt > request.attempt:
            request.begin_attempt()
        request.attempt = attempt
        request.attempt_seen = max(request.attempt_seen, attempt)
        request.worker, request.worker_epoch = worker
        request.state = "dispatched"
        request.unanswered = request.unknown = 0
        request.dispatched_s = request.heard_s = now_s
        request.check_s = self._next_check_s(request, now_s)
        self._by_worker.setdefault(worker[0], {})[request.request_id] = None
        return True

    def _leave_worker(self, request: Request) -> None:
        if request.worker is None:
            return
        self._repairs.satisfied(request.worker, request.request_id)
        others = self._by_worker[request.worker]
        del others[request.request_id]
        if not others:
            del self._by_worker[request.worker]
        request.worker = request.prefill_worker = request.gap_since_s = None

    # Tokens.

    def _on_entries(
        self, worker: str, worker_epoch: int, entries: Iterable[Entry], now_s: float
    ) -> None:
        fresh: dict[str, Request] = {}
        for entry in entries:
            request = self.requests.get(entry[0])
            if request is None:
                self._orphan(worker, entry, now_s)
            elif (entry[1] == request.attempt and worker == request.worker) or self._adopt(
                request, entry[1], (worker, worker_epoch), 0, now_s
            ):
                if self._take(request, entry, now_s):
                    fresh[request.request_id] = request
            else:
                self._out.append(Count("late_tokens_total", len(entry[4])))
        for request in fresh.values():
            if request.state != "done":
                self._delivered(request, now_s)

    def _take(self, request: Request, entry: Entry, now_s: float) -> bool:
        """Give the entry to its choice; True when that made something new for the client."""
        _, _, choice, first_index, token_ids, text, extra, finish = entry
        request.heard_s = now_s
        try:
            failed = finish is not None and finish[0] in _FAILED
            if choice < 0 or first_index < 0:
                raise IndexError  # Python would count from behind
            stream = request.streams[choice]
            if token_ids and first_index < stream.base and stream.finish is None:
                self._interrupt(request, "wrong_start", now_s)
                return False
            end = None if failed else finish
            verdict = stream.accept(first_index, token_ids, text, extra, end)
        except (TypeError, ValueError, OverflowError, IndexError):
            # A worker's bug must not become ours.
            self._out.append(Count("malformed_entries_total"))
            return False
        if verdict == GAP:
            self._want(request, now_s)
        elif verdict != FRESH and token_ids:
            self._out.append(Count("duplicate_tokens_total", len(token_ids)))
        if failed and stream.finish is None:
            self._interrupt(request, "engine_failed", now_s)
        return verdict == FRESH

    def _delivered(self, request: Request, now_s: float) -> None:
        request.unknown = 0
        if request.state == "dispatched":
            request.state = "streaming"
        if request.first_token_s is None:
            request.first_token_s = now_s
            ttft_ms = round((now_s - request.arrived_s) * 1000, 3)
            self._record(request, "first_token", {"ttft_ms": ttft_ms, "worker": request.worker})
        self._out.append(Deliver(request))
        if request.finished:
            self._finish(request, now_s)

    def _orphan(self, worker: str, entry: Entry, now_s: float) -> None:
        """Tokens of what is over, or of our own earlier life: stop them, at most once a second."""
        request_id, attempt = entry[:2]
        self._out.append(Count("late_tokens_total", len(entry[4])))
        if now_s - self._ended.get(request_id, -_FOREVER) > 1.0:
            self._remember_ended(request_id, now_s)
            self._cancel_at(request_id, attempt, worker, "superseded", None)

    # Repair.

    def _want(self, request: Request, now_s: float) -> None:
        """Something of this request did not arrive, or may not have."""
        assert request.worker is not None, "only a dispatched request has gaps"
        if self._repairs.want(request.worker, request.request_id):
            self._out.append(Count("resumes_wanted_total"))
        if request.gap_since_s is None and request.has_gap:
            request.gap_since_s = now_s
            request.check_s = min(request.check_s, now_s + self.settings.repair_s)

    def _ask(self, now_s: float) -> None:
        questions = self._repairs.questions(lambda r: self.requests[r].positions(), now_s)
        self._out.extend(Ask(question, (worker,)) for worker, question in questions)

    def _unknown_to_worker(self, request: Request, now_s: float) -> None:
        """Its word for: I never got this attempt, or have forgotten it."""
        request.unknown += 1
        if request.unknown >= self.settings.unknown_max:
            self._interrupt(request, "unknown_to_worker", now_s)

    # Time.

    def _check(self, request: Request, now_s: float) -> None:
        if now_s >= request.deadline_s:
            self._end(request, "deadline_exceeded", "the deadline passed", now_s)
        elif self._deaf(now_s):
            request.check_s = min(request.deadline_s, now_s + self.settings.deaf_after_s)
        elif request.waits:
            self._check_waiting(request, now_s)
        else:
            self._check_running(request, now_s)

    def _check_waiting(self, request: Request, now_s: float) -> None:
        if request.state == "submitted" and request.scheduler is not None:
            request.unanswered += 1
        if request.unanswered > self.settings.submit_retries_max:
            # The scheduler knows an end of this attempt that never reached us.
            self._interrupt(request, "unanswered", now_s)
            return
        self._out.append(Count("submitted_again_total"))
        self._submit(request, now_s)

    def _check_running(self, request: Request, now_s: float) -> None:
        why = self._given_up(request, now_s)
        if why is not None:
            self._interrupt(request, why, now_s)
            return
        if now_s - request.heard_s >= self.settings.probe_s:
            self._want(request, now_s)
        request.check_s = self._next_check_s(request, now_s)

    def _next_check_s(self, request: Request, now_s: float) -> float:
        """When silence, a gap or a deadline of a running attempt next means something."""
        s = self.settings
        probe_s = request.heard_s + s.probe_s
        times = [
            probe_s if probe_s > now_s else now_s + s.probe_s,
            request.dispatched_s + s.silent_after_s,
            request.dispatched_s + (s.first_token_timeout_s or _FOREVER),
            _FOREVER if request.gap_since_s is None else request.gap_since_s + s.repair_s,
        ]
        return min(request.deadline_s, *(t for t in times if t > now_s))

    def _given_up(self, request: Request, now_s: float) -> str | None:
        """Why this attempt will not come to an end any more."""
        s = self.settings
        assert request.worker is not None
        runs_s = now_s - request.dispatched_s
        if runs_s >= s.silent_after_s and not self.workers.lives(
            request.worker, request.worker_epoch
        ):
            return "worker_silent"  # lost before we heard that it has this attempt
        if request.gap_since_s is not None and now_s - request.gap_since_s >= s.repair_s:
            return "gap"
        first_s = s.first_token_timeout_s
        if first_s is not None and request.state == "dispatched" and runs_s >= first_s:
            return "first_token_timeout"
        return None

    # The end of an attempt, and of a request.

    def _interrupt(self, request: Request, why: str, now_s: float) -> None:
        """Give up the attempt: fence it, and go on elsewhere from the ids that arrived."""
        facts: Detail = {"why": why, "worker": request.worker}
        facts["emitted_tokens"] = request.emitted_tokens
        self._record(request, "interrupted", facts)
        self._out.append(Count("interruptions_total"))
        self._cancel_attempt(request, "superseded")
        self._leave_worker(request)
        if request.opaque:
            self._end(
                request, "engine_error", f"{why}, and its ids do not tell where it was", now_s
            )
            return
        request.begin_attempt()
        request.end_complete_choices()
        if request.finished:  # only the word that it ended was lost
            self._delivered(request, now_s)
            return
        request.interruptions += 1
        if request.interruptions > self.settings.interruptions_max:
            detail = f"{request.interruptions} attempts ended early"
            self._end(request, "too_many_attempts", detail, now_s)
            return
        request.attempt = request.attempt_seen = max(request.attempt, request.attempt_seen) + 1
        request.body = with_emitted(request.body, request.emitted())
        self._submit(request, now_s)

    def _finish(self, request: Request, now_s: float) -> None:
        reasons = [s.finish.reason for s in request.streams if s.finish]
        detail: Detail = {
            "finish_reason": reasons[0] if len(reasons) == 1 else list(reasons),
            "prompt_tokens": request.card.prompt_tokens,
            "completion_tokens": request.emitted_tokens,
            "cached_tokens": request.cached_tokens,
            "e2e_ms": round((now_s - request.arrived_s) * 1000, 3),
            "attempts": request.attempt,
            "interruptions": request.interruptions,
            "worker": request.worker,
        }
        self._record(request, "finished", detail)
        self._close(request, now_s)

    def _end(
        self,
        request: Request,
        code: RefusalCode,
        detail: str,
        now_s: float,
        retry_after_ms: int = 0,
    ) -> None:
        """It will not finish: whoever works on it is told, and the client."""
        facts: Detail = {"code": code, "emitted_tokens": request.emitted_tokens}
        self._record(request, "refused", facts)
        self._cancel_everywhere(request, code)
        self._close(request, now_s)
        self._out.append(End(request, code, detail, retry_after_ms))

    def _close(self, request: Request, now_s: float) -> None:
        self._leave_worker(request)
        request.state = "done"
        del self.requests[request.request_id]
        self._remember_ended(request.request_id, now_s)
        empty = BodyPublished(request_id=request.request_id, body=b"")
        self._out.append(Send(empty, (request.request_id,), request.trace))

    def _remember_ended(self, request_id: str, now_s: float) -> None:
        self._ended.pop(request_id, None)
        if len(self._ended) >= ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        self._ended[request_id] = now_s

    def _cancel_everywhere(self, request: Request, reason: str) -> None:
        self._cancel_attempt(request, reason)
        if request.scheduler is not None:
            cancel = CancelRequest(request_id=request.request_id, reason=reason)
            self._out.append(Send(cancel, (request.scheduler[0],), request.trace))

    def _cancel_attempt(self, request: Request, reason: str) -> None:
        for worker in (request.worker, request.prefill_worker):
            self._cancel_at(request.request_id, request.attempt, worker, reason, request.trace)

    def _cancel_at(
        self, request_id: str, attempt: int, worker: str | None, reason: str, trace: str | None
    ) -> None:
        if worker is not None:
            cancel = CancelAttempt(request_id=request_id, attempt=attempt, reason=reason)
            self._out.append(Send(cancel, (worker,), trace))

    def _record(self, request: Request, step: RequestStep, detail: Detail) -> None:
        self._out.append(Record(request.request_id, step, request.attempt, request.trace, detail))
