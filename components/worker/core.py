"""What an agent decides: which attempts it takes, when the engine gets them, when they end. Pure.

How to think about it. A request has at most one attempt here; a higher one takes its place, a
lower one comes too late. Every attempt takes the same road:

    fetching   its body is on its way
    waiting    accepted; a decode waits for its KV, or for the news that none will come
    running    the engine has it
    holding    a prefill that is done; its pages wait to be handed over

and leaves it by one door (``_forget``), from whichever place it has reached. What the engine gets
follows from two facts, the body and the KV, in whichever order they come (``_go_on``).

The handoff machines (``components/domain/handoff.py``) know when KV may move and who has given
up; this file turns what they want into what the engine must do. Each input gives a list of
outcomes in the order in which they must happen; the shell carries them out and comes back with
what the engine said.

Nothing here waits for ever: bodies time out in the shell, transfers have deadlines, an attempt
whose gateway is silent for the grace is aborted, and what the engine runs ends or is reported as
lost.
"""

from collections.abc import Iterable
from typing import Any, assert_never

from components.domain.bodies import decode_body
from components.domain.handoff import (
    DecodeSide,
    FallBack,
    FreeKv,
    Granted,
    HandoffOutcome,
    MoveKv,
    PrefillSide,
    StartDecode,
    StopMoving,
    StopPrefill,
)
from components.domain.outcomes import Ask, Count, Record, Send
from components.worker.attempt import Attempt
from components.worker.dispatches import Dispatches
from components.worker.engine import (
    Capabilities,
    EngineEvent,
    EngineLoad,
    JobFailed,
    JobKey,
    JobRejected,
    KvArrived,
    KvFailed,
    KvSource,
    Moved,
    MoveFailed,
    Prefilled,
)
from components.worker.memory import Memory
from components.worker.outcomes import (
    Abort,
    BeginStream,
    DropStream,
    FailStream,
    KvHere,
    OpenStream,
    ReleaseKv,
    SendKv,
    StopSending,
    Submit,
    WorkerOutcome,
)
from components.worker.posture import Posture
from components.worker.settings import WorkerSettings
from components.worker.surroundings import Life, Surroundings
from schemas.attempt import CancelAttempt, RunAttempt
from schemas.body import FetchBody
from schemas.codes import AttemptState, FinishReason, NackReason, ReleaseReason
from schemas.engine import ControlEngine, ControlEngineReply, EngineLoadReported
from schemas.fleet import HeartbeatSent
from schemas.handoff import (
    ConsumeHandoff,
    GrantHandoff,
    OfferHandoff,
    ReadyHandoff,
    ReleaseHandoff,
    RenewHandoff,
)
from schemas.request import RequestRefused

HandoffMessage = (
    OfferHandoff | GrantHandoff | RenewHandoff | ReadyHandoff | ConsumeHandoff | ReleaseHandoff
)
Outcomes = list[WorkerOutcome]
_Wanted = StopPrefill | MoveKv | StopMoving | FreeKv | Granted | StartDecode | FallBack


class WorkerCore:
    """See the top of the file. ``instance`` and ``epoch`` are this process's own."""

    def __init__(
        self, instance: str, epoch: int, settings: WorkerSettings, capabilities: Capabilities
    ) -> None:
        self._instance = instance
        self._epoch = epoch
        self._settings = settings
        self._able = capabilities
        self._attempts: dict[str, Attempt] = {}
        self._memory = Memory(settings.ended_max, settings.ended_ttl_s)
        self._transfers: dict[str, str] = {}  # transfer id -> request id
        self._dispatches = Dispatches()
        self._around = Surroundings(
            instance,
            peer_silent_after_s=settings.peer_silent_after_s,
            deaf_after_s=settings.deaf_after_s,
        )
        self._sends = PrefillSide(instance, epoch, settings.handoff())
        self._receives = DecodeSide(instance, epoch, settings.handoff())
        self.posture = Posture(settings.role)
        self.draining = False

    # What others want to know

    @property
    def leases(self) -> int:
        """Handoffs that hold pages."""
        return self._sends.leases + self._receives.leases

    @property
    def is_idle(self) -> bool:
        """Nothing runs, waits or holds anything."""
        return not (self._attempts or len(self._sends) or len(self._receives))

    @property
    def running(self) -> tuple[JobKey, ...]:
        """The attempts that are here."""
        return tuple(attempt.key for attempt in self._attempts.values())

    def load_report(self, load: EngineLoad, at_ms: int = 0) -> EngineLoadReported:
        """The engine's own figures, and what the agent holds for it or has not given it yet."""
        waiting = sum(a.choices_left for a in self._attempts.values() if a.state == "waiting")
        pages = load.kv_pages_used + self._receives.reserved_pages
        return EngineLoadReported(
            engine=self._instance,
            engine_epoch=self._epoch,
            role=self.posture.role,
            model=self._settings.model,
            shard=self._settings.shard_name,
            running=load.running,
            waiting=load.waiting + waiting,
            seqs_max=load.seqs_max,
            queued_tokens=load.queued_tokens,
            kv_pages_used=min(pages, load.kv_pages_total),
            kv_pages_total=load.kv_pages_total,
            watermark=load.watermark,
            admitted=self._dispatches.admitted(),
            router_epoch_max=self._dispatches.epoch_max,
            leases=self.leases,
            prefix_hit_tokens=load.prefix_hit_tokens,
            prompt_tokens=load.prompt_tokens,
            predicted_step_ms=load.predicted_step_ms,
            predicted_wait_ms=load.predicted_wait_ms,
            capacity_tokens_per_s=load.capacity_tokens_per_s,
            scheduling_mode=load.scheduling_mode,
            accepting=self.posture.is_open and not self.draining,
            activity=self.posture.activity,
            step_fit=load.step_fit,
            at_ms=at_ms,
        )

    # An attempt comes

    def on_run(self, run: RunAttempt, now_s: float) -> Outcomes:
        """The router gives us an attempt."""
        gateway = run.card.gateway
        attempt = Attempt(run, gateway, self._around.gateways.life_of(gateway, now_s), now_s)
        if not self._dispatches.arrived(run):
            return [self._report(attempt, "refused", nack="stale_epoch")]
        nack = self._objection(attempt)
        if nack is not None:
            return self._refuse(attempt, nack)
        if self._memory.is_cancelled(*attempt.key):
            self._dispatches.decided(run)
            return [self._report(attempt, "ended", finish="abort"), *self._warn_peer(attempt)]
        outcomes = self._supersede(attempt.key[0], now_s)
        self._attempts[attempt.key[0]] = attempt
        if run.phase != "prefill":
            outcomes.append(OpenStream(attempt.key, gateway))
        outcomes += self._expect(attempt, now_s)
        if self._attempts.get(attempt.key[0]) is not attempt:
            return outcomes  # the other half had given up already
        if run.body is not None:
            return outcomes + self.on_body(attempt.key, run.body, now_s)
        fetch = FetchBody(request_id=attempt.key[0], attempt=attempt.key[1])
        return [*outcomes, Ask(fetch, (gateway,), run.card.traceparent)]

    def _objection(self, attempt: Attempt) -> NackReason | None:
        """Why this attempt cannot be taken, if anything is known against it now."""
        run, (request_id, number) = attempt.run, attempt.key
        known = self._attempts.get(request_id)
        if (known is not None and known.key[1] >= number) or self._memory.has_run(*attempt.key):
            return "duplicate"
        if self.draining or not self.posture.takes_new or run.worker_epoch != self._epoch:
            # Of an epoch not ours: meant for my former life, and its router has not heard of it.
            return "draining"
        if run.phase not in self._able.phases:
            return "unsupported"
        if len(self._attempts) >= self._settings.attempts_max:
            return "full"
        return "too_long" if self._is_too_long(attempt) else None

    def _is_too_long(self, attempt: Attempt) -> bool:
        too_many_tokens = attempt.run.card.prompt_tokens >= self._able.context_tokens_max
        return too_many_tokens or attempt.kv_pages > self._able.kv_pages_total

    def _refuse(self, attempt: Attempt, nack: NackReason) -> Outcomes:
        outcomes = self._refused(attempt, nack)
        if nack != "duplicate":  # then the transfer may well be alive
            outcomes += self._warn_peer(attempt)
        return outcomes

    def _refused(self, attempt: Attempt, nack: NackReason) -> Outcomes:
        self._dispatches.decided(attempt.run)
        return [self._report(attempt, "refused", nack=nack), Count(f"refused_{nack}_total")]

    def _warn_peer(self, attempt: Attempt) -> Outcomes:
        """The other half need not wait for us."""
        pairing = attempt.pairing
        if pairing is None:
            return []
        release = ReleaseHandoff(
            transfer_id=pairing.transfer_id, sender=self._instance, reason="refused"
        )
        return [Send(release, (pairing.peer,), pairing.trace)]

    def _supersede(self, request_id: str, now_s: float) -> Outcomes:
        """A higher attempt is here: the one before is nobody's."""
        older = self._attempts.get(request_id)
        return [] if older is None else self._abort(older, "superseded", now_s)

    def _expect(self, attempt: Attempt, now_s: float) -> Outcomes:
        """The handoff begins to exist, so that the other half's questions find it."""
        pairing = attempt.pairing
        if pairing is None:
            attempt.alone = True
            return []
        self._transfers[pairing.transfer_id] = pairing.request_id
        if attempt.run.phase == "prefill":
            return self._do(self._sends.expect(pairing, now_s), now_s)
        return self._do(self._receives.expect(pairing, attempt.kv_pages, now_s), now_s)

    def on_body(self, key: JobKey, data: bytes | None, now_s: float) -> Outcomes:
        """The content came, or (None) will not come."""
        attempt = self._find(key)
        if attempt is None or attempt.state != "fetching":
            return []
        if data is None:
            return self._refuse_late(attempt, "body_unavailable", now_s)
        try:
            attempt.take_body(decode_body(data))
        except ValueError:  # a malformed body, or page hashes that are none
            return self._refuse_late(attempt, "unsupported", now_s)
        assert attempt.job is not None
        if not attempt.job.prompt:
            return self._refuse_late(attempt, "unsupported", now_s)
        outcomes: Outcomes = []
        if attempt.run.phase == "prefill":
            attempt.choices_left = 1
        else:
            outcomes.append(BeginStream(key, attempt.starts()))
        if not attempt.choices_left:  # every choice was complete before
            accepted = self._accept(attempt)
            return [*outcomes, accepted, *self._leave(attempt, "stop", "cancelled", now_s)]
        attempt.state = "waiting"
        if attempt.run.phase == "decode":
            outcomes.append(self._accept(attempt))
        return outcomes + self._go_on(attempt)

    def _refuse_late(self, attempt: Attempt, nack: NackReason, now_s: float) -> Outcomes:
        """It was taken in and cannot be run after all."""
        outcomes: Outcomes = []
        if attempt.run.phase != "prefill":
            outcomes.append(DropStream(attempt.key))
        outcomes += self._refused(attempt, nack)
        return outcomes + self._forget(attempt, "refused", now_s, remember=False)

    def _go_on(self, attempt: Attempt) -> Outcomes:
        """Give it to the engine as soon as nothing is missing."""
        if attempt.state != "waiting" or attempt.job is None:
            return []
        if attempt.run.phase == "decode" and not attempt.alone and attempt.kv is None:
            return []
        attempt.state = "running"
        job = attempt.job
        if attempt.run.phase == "decode":
            job = job.alone() if attempt.kv is None else job.with_kv(attempt.kv)
        outcomes: Outcomes = [Submit(job)]
        if attempt.kv_here:
            outcomes.append(KvHere(attempt.key))
        return outcomes

    def on_submitted(self, key: JobKey, now_s: float) -> Outcomes:
        """The engine has taken the job."""
        attempt = self._find(key)
        if attempt is None or attempt.run.phase == "decode":
            return []  # that one was accepted when it began to wait for its KV
        return [self._accept(attempt)]

    def on_refused(self, key: JobKey, nack: NackReason, now_s: float) -> Outcomes:
        """The engine has not taken the job."""
        attempt = self._find(key)
        if attempt is None:
            return []
        if attempt.run.phase == "decode":
            return self._fail(attempt, now_s)
        return self._refuse_late(attempt, nack, now_s)

    def _accept(self, attempt: Attempt) -> Send:
        self._dispatches.decided(attempt.run)
        return self._report(attempt, "accepted")

    # An attempt ends

    def on_cancel(self, cancel: CancelAttempt, now_s: float) -> Outcomes:
        """Nobody wants this attempt or an earlier one."""
        attempt = self._attempts.get(cancel.request_id)
        if attempt is None:
            # Perhaps it overtook the dispatch.
            self._memory.add(cancel.request_id, cancel.attempt, now_s, cancelled=True)
            return []
        if attempt.key[1] > cancel.attempt:
            return []
        reason: ReleaseReason = "superseded" if cancel.reason == "superseded" else "cancelled"
        return [*self._abort(attempt, reason, now_s), Count("cancelled_total")]

    def _abort(self, attempt: Attempt, reason: ReleaseReason, now_s: float) -> Outcomes:
        """End it wherever it is; nobody hears more than that it ended."""
        outcomes: Outcomes = []
        if attempt.state == "running":
            outcomes.append(Abort(attempt.key))
        if attempt.run.phase != "prefill":
            outcomes.append(DropStream(attempt.key))
        return outcomes + self._leave(attempt, "abort", reason, now_s, cancelled=True)

    def _fail(self, attempt: Attempt, now_s: float) -> Outcomes:
        """It cannot go on here; its gateway hears of it and decides."""
        outcomes: Outcomes = []
        if attempt.run.phase != "prefill":
            outcomes.append(FailStream(attempt.key, "error"))
        return outcomes + self._leave(attempt, "error", "transfer_failed", now_s)

    def _reject(self, attempt: Attempt, param: str, now_s: float) -> Outcomes:
        """No engine can do what it asks for: its client hears that, and nobody tries again."""
        refused = RequestRefused(
            request_id=attempt.key[0], attempt=attempt.key[1], code="invalid_request", detail=param
        )
        outcomes: Outcomes = [Send(refused, (attempt.gateway,), attempt.run.card.traceparent)]
        if attempt.run.phase != "prefill":
            outcomes.append(DropStream(attempt.key))
        return outcomes + self._leave(attempt, "error", "cancelled", now_s)

    def on_began(self, key: JobKey, now_s: float) -> Outcomes:
        """Its first token has come out."""
        attempt = self._find(key)
        return [] if attempt is None else [self._report(attempt, "first_token")]

    def on_choice_ended(self, key: JobKey, finish: list[Any], ids: int, now_s: float) -> Outcomes:
        """One of its choices is complete. ``finish`` as in ``schemas.frames``."""
        attempt = self._find(key)
        if attempt is None:
            return []
        reason, _, cached_tokens = finish
        attempt.output_tokens += ids
        attempt.cached_tokens = max(attempt.cached_tokens, cached_tokens)
        attempt.choices_left -= 1
        if attempt.choices_left:
            return []
        return self._leave(attempt, reason, "cancelled", now_s)

    def _leave(
        self,
        attempt: Attempt,
        finish: FinishReason,
        reason: ReleaseReason,
        now_s: float,
        *,
        cancelled: bool = False,
    ) -> Outcomes:
        """Report the end, then forget it."""
        self._dispatches.decided(attempt.run)
        outcomes: Outcomes = []
        if attempt.state != "holding":  # that one has reported its end
            outcomes.append(self._report(attempt, "ended", finish=finish))
        return [*outcomes, *self._forget(attempt, reason, now_s, cancelled=cancelled)]

    def _forget(
        self,
        attempt: Attempt,
        reason: ReleaseReason,
        now_s: float,
        *,
        cancelled: bool = False,
        remember: bool = True,
    ) -> Outcomes:
        """The one door: out of the table, into memory; an open transfer is released."""
        del self._attempts[attempt.key[0]]
        if remember:
            self._memory.add(*attempt.key, now_s, cancelled=cancelled)
        pairing = attempt.pairing
        if pairing is None or pairing.transfer_id not in self._transfers:
            return []
        del self._transfers[pairing.transfer_id]
        if attempt.run.phase == "prefill":
            ended = self._sends.cancel(pairing.transfer_id, reason, now_s)
        else:
            ended = self._receives.cancel(pairing.transfer_id, reason, now_s)
        return self._do(ended, now_s, attempt)

    # The engine

    def on_engine(self, event: EngineEvent, now_s: float) -> Outcomes:
        """What the engine said besides tokens."""
        attempt = self._find(event.key)
        if attempt is None:
            # It ended while this was on its way; what the engine still holds is nobody's.
            return [ReleaseKv(event.key)] if isinstance(event, Prefilled) else []
        if isinstance(event, Prefilled):
            return self._on_prefilled(attempt, event, now_s)
        if isinstance(event, JobRejected):
            return [*self._reject(attempt, event.param, now_s), Count("jobs_rejected_total")]
        if isinstance(event, JobFailed):
            return [*self._fail(attempt, now_s), Count("jobs_failed_total")]
        return self._do(self._on_bytes(event, attempt.run.transfer_id or "", now_s), now_s)

    def _on_bytes(
        self, event: Moved | MoveFailed | KvArrived | KvFailed, transfer_id: str, now_s: float
    ) -> list[HandoffOutcome]:
        match event:
            case Moved():
                return self._sends.on_moved(transfer_id, event.bytes_moved, now_s)
            case MoveFailed():
                return self._sends.on_move_failed(transfer_id, now_s)
            case KvArrived():
                return self._receives.on_arrived(transfer_id, event.bytes_moved, now_s)
            case KvFailed():
                return self._receives.on_arrival_failed(transfer_id, now_s)
            case _:
                assert_never(event)

    def _on_prefilled(self, attempt: Attempt, event: Prefilled, now_s: float) -> Outcomes:
        """For the router this attempt ends here: its pages show in the load."""
        attempt.cached_tokens = event.cached_tokens
        ended = self._report(attempt, "ended", finish="stop")
        attempt.state = "holding"
        pairing = attempt.pairing
        if pairing is None:
            return [ended, ReleaseKv(event.key), *self._forget(attempt, "cancelled", now_s)]
        offered = self._sends.on_prefilled(
            pairing.transfer_id, event.tokens, event.pages, event.bytes_total, event.params, now_s
        )
        return [ended, *self._do(offered, now_s, attempt)]

    def on_room(self, free_pages: int, now_s: float) -> Outcomes:
        """How many pages of the engine no sequence holds now."""
        return self._do(self._receives.on_room(free_pages, now_s), now_s)

    # The handoff

    def on_handoff(self, message: HandoffMessage, sender_epoch: int, now_s: float) -> Outcomes:
        """A word of another worker; ``sender_epoch`` stands in its envelope."""
        match message:
            case OfferHandoff() | ReadyHandoff():
                return self._do(self._receives.on_message(message, sender_epoch, now_s), now_s)
            case GrantHandoff() | RenewHandoff() | ConsumeHandoff():
                return self._do(self._sends.on_message(message, sender_epoch, now_s), now_s)
            case ReleaseHandoff():
                return self._on_release(message, sender_epoch, now_s)
            case _:
                assert_never(message)

    def _on_release(self, message: ReleaseHandoff, sender_epoch: int, now_s: float) -> Outcomes:
        """To whichever half we are; to both when we do not know the transfer."""
        owner = self._attempts.get(self._transfers.get(message.transfer_id, ""))
        outcomes: list[HandoffOutcome] = []
        if owner is None or owner.run.phase == "prefill":
            outcomes += self._sends.on_message(message, sender_epoch, now_s)
        if owner is None or owner.run.phase == "decode":
            outcomes += self._receives.on_message(message, sender_epoch, now_s)
        return self._do(outcomes, now_s)

    def _do(
        self, outcomes: Iterable[HandoffOutcome], now_s: float, ended: Attempt | None = None
    ) -> Outcomes:
        """What the handoff machines want, as what the engine must do.

        ``ended`` is an attempt that has left already and whose transfer ends with it.
        """
        done: Outcomes = []
        for outcome in outcomes:
            if isinstance(outcome, Send | Count):
                done.append(outcome)
                continue
            attempt = self._of(outcome.transfer_id) or ended
            if attempt is not None:
                done += self._do_one(outcome, attempt, now_s)
        return done

    def _do_one(self, outcome: _Wanted, attempt: Attempt, now_s: float) -> Outcomes:
        done: Outcomes
        match outcome:
            case StopPrefill():
                done = self._stop_prefill(attempt, outcome.reason, now_s)
            case MoveKv():
                done = [SendKv(attempt.key, outcome.peer)]
            case StopMoving():
                done = [StopSending(attempt.key)]
            case FreeKv():
                done = self._free(attempt, outcome.reason, now_s)
            case Granted():
                attempt.kv = KvSource.of(outcome.offer)
                done = self._go_on(attempt)
            case StartDecode():
                done = self._start_decode(attempt, outcome)
            case FallBack():
                done = self._fall_back(attempt, outcome, now_s)
            case _:
                assert_never(outcome)
        return done

    def _stop_prefill(self, attempt: Attempt, reason: ReleaseReason, now_s: float) -> Outcomes:
        """D has given up: nobody will fetch what is being computed."""
        if self._find(attempt.key) is not attempt:
            return []  # it was we who gave up
        del self._transfers[attempt.run.transfer_id or ""]
        return self._abort(attempt, reason, now_s)

    def _free(self, attempt: Attempt, reason: ReleaseReason, now_s: float) -> Outcomes:
        """The transfer is over and its pages with it."""
        if self._find(attempt.key) is attempt:
            del self._transfers[attempt.run.transfer_id or ""]
            self._forget(attempt, reason, now_s)
        return [ReleaseKv(attempt.key)]

    def _start_decode(self, attempt: Attempt, start: StartDecode) -> Outcomes:
        self._transfers.pop(start.transfer_id, None)
        attempt.kv_here = True
        assert attempt.kv is not None
        handed_over = Record(
            attempt.key[0],
            "handed_over",
            attempt.key[1],
            attempt.run.card.traceparent,
            {
                "from": attempt.kv.sender,
                "tokens": attempt.kv.tokens,
                "bytes": start.bytes_moved,
                "ms": round(start.waited_ms, 3),
            },
        )
        if attempt.state == "running":
            return [KvHere(attempt.key), handed_over]
        return [handed_over]

    def _fall_back(self, attempt: Attempt, back: FallBack, now_s: float) -> Outcomes:
        """No KV will come: compute the prompt here, or give up, by setting."""
        self._transfers.pop(back.transfer_id, None)
        outcomes: Outcomes = [Count("fallbacks_total")]
        if attempt.state == "running":  # the engine waits for bytes that will not come
            outcomes.append(Abort(attempt.key))
            attempt.state = "waiting"
        if not back.recompute:
            return outcomes + self._fail(attempt, now_s)
        attempt.alone, attempt.kv = True, None
        return outcomes + self._go_on(attempt)

    # Who lives

    def on_heartbeat(self, heartbeat: HeartbeatSent, now_s: float) -> Outcomes:
        """Somebody lives; gateways and workers matter."""
        return self._on_lost(self._around.on_heartbeat(heartbeat, now_s), now_s)

    def on_reconnect(self, now_s: float) -> None:
        """The bus was away: what we did not hear proves nothing."""
        self._around.forgive(now_s)

    def on_rehomed(self, key: JobKey, gateway: str, now_s: float) -> None:
        """Another gateway has taken over the client of this attempt."""
        attempt = self._find(key)
        if attempt is not None:
            attempt.gateway = gateway
            attempt.gateway_life = self._around.gateways.life_of(gateway, now_s)

    def on_tick(self, now_s: float) -> Outcomes:
        """Deadlines of handoffs; peers and gateways that are gone; what may be forgotten."""
        outcomes = self._do(self._sends.on_tick(now_s), now_s)
        outcomes += self._do(self._receives.on_tick(now_s), now_s)
        outcomes += self._on_lost(self._around.on_tick(now_s), now_s)
        if not self._around.is_deaf(now_s):
            for attempt in list(self._attempts.values()):
                if self._find(attempt.key) is attempt:
                    outcomes += self._check(attempt, now_s)
        self._around.gateways.forget({a.gateway for a in self._attempts.values()}, now_s)
        self._memory.expire(now_s)
        return outcomes

    def _on_lost(self, lives: list[Life], now_s: float) -> Outcomes:
        lost: list[HandoffOutcome] = []
        for life in lives:
            lost += self._sends.on_peer_lost(*life, now_s)
            lost += self._receives.on_peer_lost(*life, now_s)
        return self._do(lost, now_s)

    def _check(self, attempt: Attempt, now_s: float) -> Outcomes:
        """Is anybody still there who waits for this attempt, or for whom it waits?"""
        run = attempt.run
        grace_s = (self._settings.gateway_grace_ms + run.card.resume_ms) / 1e3
        silent_s = self._around.gateways.silent_s(attempt.gateway, attempt.gateway_life, now_s)
        if attempt.state != "holding" and silent_s > grace_s:
            return [*self._abort(attempt, "cancelled", now_s), Count("gateway_lost_total")]
        known_s = now_s - attempt.since_s
        if run.transfer_id in self._transfers and known_s > self._settings.peer_silent_after_s:
            life = (run.peer or "", run.peer_epoch)
            if life[1] is not None and not self._around.peers.lives(life[0], life[1]):
                return self._on_lost([(life[0], life[1])], now_s)  # it died before we met it
        return []

    # What operators want

    def begin_control(self, control: ControlEngine, now_s: float) -> tuple[Outcomes, str]:
        """Begin what an operator wants, or say why not. Begun, it ends with ``end_control``.

        Whoever loses its work by it hears of that first: the client goes on elsewhere.
        """
        objection = self.posture.begin(control, self._able.phases)
        if objection or not self.posture.needs_engine(control):
            return [], objection
        outcomes: Outcomes = []
        if control.action == "sleep" or (control.action == "pause" and not control.keep):
            for attempt in list(self._attempts.values()):
                if attempt.state != "holding" or control.action == "sleep":
                    outcomes += self._give_up(attempt, now_s)
        return outcomes, ""

    def end_control(self, control: ControlEngine, *, done: bool) -> None:
        """What was begun is done, or was not to be done."""
        self.posture.end(control, done=done)

    def controlled(self, detail: str) -> ControlEngineReply:
        """How the engine stands; ``detail`` says why something was not done, if it was not."""
        return ControlEngineReply(
            engine=self._instance,
            done=not detail,
            detail=detail,
            role=self.posture.role,
            activity=self.posture.activity,
            accepting=self.posture.is_open and not self.draining,
        )

    def _give_up(self, attempt: Attempt, now_s: float) -> Outcomes:
        """The engine is about to lose what it has of it."""
        if self._find(attempt.key) is not attempt:
            return []  # the other half, which ended here before it
        if attempt.state == "fetching":
            return self._refuse_late(attempt, "draining", now_s)
        stop: Outcomes = [Abort(attempt.key)] if attempt.state == "running" else []
        return stop + self._fail(attempt, now_s)

    # Leaving

    def drain(self) -> None:
        """Take nothing new; what is here goes on."""
        self.draining = True

    def end(self, now_s: float) -> Outcomes:
        """The time to finish is over: free everything. Gateways go on elsewhere."""
        outcomes: Outcomes = []
        for attempt in list(self._attempts.values()):
            outcomes += self._abort(attempt, "draining", now_s)
        outcomes += self._do(self._sends.cancel_all("draining", now_s), now_s)
        return outcomes

    # Small things

    def _find(self, key: JobKey) -> Attempt | None:
        attempt = self._attempts.get(key[0])
        return attempt if attempt is not None and attempt.key == key else None

    def _of(self, transfer_id: str) -> Attempt | None:
        return self._attempts.get(self._transfers.get(transfer_id, ""))

    def _report(
        self,
        attempt: Attempt,
        state: AttemptState,
        *,
        nack: NackReason | None = None,
        finish: FinishReason | None = None,
    ) -> Send:
        report = attempt.reported(state, self._instance, self._epoch, nack, finish)
        to = (self._settings.shard_name, self._instance)
        return Send(report, to, attempt.run.card.traceparent)
