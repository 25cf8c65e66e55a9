"""Which engines take a card: who is usable, who has room, and whom the policy chooses. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from components.router.policies import POLICIES, Candidate
from components.router.settings import RouterSettings
from components.router.view import EngineView, pages_of
from schemas.codes import Role, WaitReason
from schemas.request import RequestCard
from schemas.routing import CandidateCost


@dataclass(frozen=True, slots=True)
class Pick:
    """One chosen engine, whose turn it was (shard and role), and all that were looked at."""

    view: EngineView
    turn: str
    costs: tuple[CandidateCost, ...]

    @property
    def worker(self) -> str:
        return self.view.heartbeat.instance


@dataclass(frozen=True, slots=True)
class Placement:
    """The engines as they are now. ``last`` says per turn (shard and role) who was chosen last."""

    settings: RouterSettings
    views: Mapping[str, EngineView]
    last: Mapping[str, str]

    def pick_pair(
        self, card: RequestCard, shard: str, now_s: float
    ) -> tuple[Pick, Pick | None] | WaitReason:
        """Prefill and decode where both live; else an engine that does both."""
        lives = {r: list(self._of(shard, r)) for r in ("aggregated", "prefill", "decode")}
        if not any(lives.values()):
            return "no_worker"
        reason: WaitReason = "no_decode_room"
        paired = bool(lives["prefill"] and lives["decode"]) and not card.whole
        if paired:
            decode = self._pick(card, lives["decode"], "decode", shard, now_s)
            prefill = self._pick(card, lives["prefill"], "prefill", shard, now_s)
            if not isinstance(decode, str) and not isinstance(prefill, str):
                return decode, prefill
            reason = decode if isinstance(decode, str) else "no_prefill_room"
        able = lives["aggregated"]
        if self.settings.any_engine_may_do_both and not paired:
            able = able or lives["decode"] or lives["prefill"]
        if able:
            both = self._pick(card, able, "aggregated", shard, now_s)
            return both if isinstance(both, str) else (both, None)
        return reason

    def _of(self, shard: str, role: str) -> Iterable[EngineView]:
        for name in sorted(self.views):
            heartbeat = self.views[name].heartbeat
            if heartbeat.shard == shard and heartbeat.role == role:
                yield self.views[name]

    def _pick(
        self, card: RequestCard, views: list[EngineView], role: Role, shard: str, now_s: float
    ) -> Pick | WaitReason:
        fresh = [v for v in views if self._usable(v, now_s)]
        if not fresh:
            return "no_fresh_worker"
        needed = 1 if role == "prefill" else card.choices
        rooms = {v.heartbeat.instance: self._room(card, v, role) for v in fresh}
        candidates = [
            Candidate(name, v.load, rooms[name], v.queued_tokens)
            for v in fresh
            if rooms[name := v.heartbeat.instance] >= needed or (v.load == 0 and rooms[name] > 0)
        ]
        if not candidates:
            return "no_prefill_room" if role == "prefill" else "no_decode_room"
        turn = f"{shard}/{role}"
        chosen = POLICIES[self.settings.policy](candidates, self.last.get(turn, ""))
        costs = tuple(
            CandidateCost(
                worker=v.heartbeat.instance,
                chosen=v.heartbeat.instance == chosen.worker,
                load=v.load,
                room=rooms[v.heartbeat.instance],
                state_seq=v.report_seq,
                state_age_ms=round((now_s - v.report_s) * 1000),
            )
            for v in fresh
        )
        return Pick(self.views[chosen.worker], turn, costs)

    def _usable(self, view: EngineView, now_s: float) -> bool:
        return (
            view.heartbeat.state == "ready"
            and view.is_fresh(now_s, self.settings.stale_after_s)
            and view.report is not None
            and view.report.accepting
        )

    def _room(self, card: RequestCard, view: EngineView, role: Role) -> int:
        """How many more sequences the engine takes now. An idle one always takes one request."""
        assert view.report is not None
        load = view.load
        if load == 0:
            return max(1, view.report.seqs_max)
        tokens = card.prompt_tokens + card.emitted_tokens
        if view.free_pages < pages_of(tokens):
            return 0
        if role == "prefill":
            if view.queued_tokens + tokens > self.settings.prefill_tokens_max:
                return 0
            return max(0, self.settings.prefill_requests_max - load)
        return max(0, view.report.seqs_max + self.settings.decode_overbook - load)
