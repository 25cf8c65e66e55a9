"""Which engines take a card: who is usable, who has room, and whom the policy chooses. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from components.domain.cost import first_token_ms, next_token_ms
from components.router.policies import POLICIES, Candidate, Policy, Pool
from components.router.settings import RouterSettings
from components.router.view import EngineView, pages_of
from schemas.codes import Role, WaitReason
from schemas.request import RequestCard
from schemas.routing import CandidateCost


@dataclass(frozen=True, slots=True)
class Pick:
    """One chosen engine, whose turn it was (shard and role), and all that were looked at.

    ``pool`` is set when the policy gives whole requests to a pool: the one this belongs to.
    """

    view: EngineView
    turn: str
    costs: tuple[CandidateCost, ...]
    pool: Pool | None = None

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
        """Prefill and decode where both live; else an engine that does both.

        By a policy with pools always one engine that does both.
        """
        lives = {r: list(self._of(shard, r)) for r in ("aggregated", "prefill", "decode")}
        if not any(lives.values()):
            return "no_worker"
        if self._policy.pool_of is not None:
            pool = self._policy.pool_of(card, self.settings.class_bounds())
            whole = self._pick_whole(card, pool, lives, shard, now_s)
            return whole if isinstance(whole, str) else (replace(whole, pool=pool), None)
        reason: WaitReason = "no_decode_room"
        paired = bool(lives["prefill"] and lives["decode"]) and not card.whole
        if paired:
            decode = self._pick(card, lives["decode"], "decode", f"{shard}/decode", now_s)
            prefill = self._pick(card, lives["prefill"], "prefill", f"{shard}/prefill", now_s)
            if not isinstance(decode, str) and not isinstance(prefill, str):
                return decode, prefill
            reason = decode if isinstance(decode, str) else "no_prefill_room"
        able = lives["aggregated"]
        if self.settings.any_engine_may_do_both and not paired:
            able = able or lives["decode"] or lives["prefill"]
        if able:
            both = self._pick(card, able, "aggregated", f"{shard}/aggregated", now_s)
            return both if isinstance(both, str) else (both, None)
        return reason

    def _pick_whole(
        self,
        card: RequestCard,
        pool: Pool,
        lives: Mapping[str, list[EngineView]],
        shard: str,
        now_s: float,
    ) -> Pick | WaitReason:
        """An engine of the pool, else an aggregated one, else by setting one of the other pool."""
        other: Pool = "decode" if pool == "prefill" else "prefill"
        full = False
        for role in (pool, "aggregated", other):
            # A pool that is full has engines of its own; one that is empty has nobody to wait for.
            if role == other and not self._may_leave(full=full):
                break
            picked = self._pick(card, lives[role], "aggregated", f"{shard}/{role}", now_s)
            if not isinstance(picked, str):
                return picked
            full = full or picked != "no_fresh_worker"
        if not full:
            return "no_fresh_worker"
        return "no_prefill_room" if pool == "prefill" else "no_decode_room"

    def _may_leave(self, *, full: bool) -> bool:
        """May a request go to the pool that is not its own?"""
        settings = self.settings
        return settings.any_engine_may_do_both and not (
            full and settings.segregate_when_full == "wait"
        )

    @property
    def _policy(self) -> Policy:
        return POLICIES[self.settings.policy]

    def _of(self, shard: str, role: str) -> Iterable[EngineView]:
        for name in sorted(self.views):
            heartbeat = self.views[name].heartbeat
            if heartbeat.shard == shard and heartbeat.role == role:
                yield self.views[name]

    def _pick(
        self, card: RequestCard, views: list[EngineView], role: Role, turn: str, now_s: float
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
        chosen = self._policy.choose(candidates, self.last.get(turn, ""))
        costs = tuple(
            CandidateCost(
                worker=v.heartbeat.instance,
                chosen=v.heartbeat.instance == chosen.worker,
                load=v.load,
                room=rooms[v.heartbeat.instance],
                state_seq=v.report_seq,
                state_age_ms=round((now_s - v.report_s) * 1000),
                queued_tokens=v.queued_tokens,
                free_pages=v.free_pages,
                cost_ms=_cost_ms(card, v, role),
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


def _cost_ms(card: RequestCard, view: EngineView, role: Role) -> float | None:
    """For whoever asks why later; no policy of these reads it."""
    assert view.report is not None
    tokens = card.prompt_tokens + card.emitted_tokens
    first = first_token_ms(
        view.report, running=view.load, queued_tokens=view.queued_tokens, tokens=tokens
    )
    following = next_token_ms(view.report, running=view.load, tokens=tokens)
    if first is None or following is None:
        return None
    return {"prefill": first, "decode": following, "aggregated": first + following}[role]
