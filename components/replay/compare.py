"""What another policy would have decided, at each decision of a recorded life. Pure.

Each decision is judged where it was taken: the recorded core is brought to the wake-up, a twin with
other settings starts from its state, and both get the same inputs. Then the twin is thrown away,
because what followed (loads, ends of requests) answers what was really decided. So these are
differences of single decisions on the true state; what they would have led to together is for the
simulator to say.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from bus import codec
from components.domain.outcomes import Answer, Ask, Core, Outcome
from components.host.journal import Input, unpack_inputs, unpack_outcomes
from components.replay.check import CORES, Resolve, feed
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.past import Difference
from schemas.routing import Plan, RouteWindow, RouteWindowReply

#: An entry with one of these among its outcomes is a decision.
DECISIONS: Final = frozenset({RouteWindow.schema_id, RouteWindowReply.schema_id})


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one request (or about a window's order), and its modelled cost."""

    attempt: int
    kind: str
    what: str
    cost_ms: float | None = None


@dataclass(slots=True)
class Comparison:
    """``compared`` decisions were taken twice; ``differences`` are those that came out otherwise.

    At most ``listed_max`` are listed; ``effects_ms`` sums over all that have an effect.
    """

    listed_max: int
    compared: int = 0
    different: int = 0
    effects: int = 0
    effects_ms: float = 0.0
    differences: list[Difference] = field(default_factory=list)

    @property
    def effect_ms_mean(self) -> float | None:
        return round(self.effects_ms / self.effects, 3) if self.effects else None


def with_changes(settings: str, changes: Mapping[str, str]) -> str:
    """The JSON of a core's settings with some of them changed."""
    return json.dumps({**json.loads(settings), **changes})


def compare(
    start: JournalSnapshotted,
    entries: Iterable[JournalAppended],
    resolve: Resolve,
    changes: Mapping[str, str],
    into: Comparison,
) -> None:
    """Judge every decision of one life again under ``changes`` to its settings.

    Raises ``pydantic.ValidationError`` when the core has no such settings.
    """
    core = CORES[start.component](start.owner, start.settings)
    core.restore(codec.unpack(start.state))
    other = with_changes(start.settings, changes)
    for entry in entries:
        if entry.index <= start.index:
            continue
        inputs = unpack_inputs(entry.inputs)
        if not is_decision(entry):
            _feed_all(core, inputs, entry.now_s, resolve)
            continue
        twin = CORES[start.component](start.owner, other)
        twin.restore(codec.unpack(codec.pack(core.snapshot())))
        _judge(
            _decisions(inputs, _feed_all(core, inputs, entry.now_s, resolve)),
            _decisions(inputs, _feed_all(twin, inputs, entry.now_s, resolve)),
            into,
        )


def is_decision(entry: JournalAppended) -> bool:
    """Did this wake-up place requests, or put them in an order?"""
    return any(what in DECISIONS for what, *_ in unpack_outcomes(entry.outcomes))


def _feed_all(core: Core, inputs: list[Input], now_s: float, resolve: Resolve) -> list[Outcome]:
    return [o for item in inputs for o in feed(core, item, now_s, resolve, [])]


def _judge(
    recorded: Mapping[str, Decision], instead: Mapping[str, Decision], into: Comparison
) -> None:
    for about, was in recorded.items():
        would = instead.get(about, Decision(was.attempt, was.kind, "nothing yet"))
        into.compared += 1
        if (was.kind, was.what) == (would.kind, would.what):
            continue
        into.different += 1
        effect_ms = None
        if was.cost_ms is not None and would.cost_ms is not None:
            effect_ms = round(would.cost_ms - was.cost_ms, 3)
            into.effects += 1
            into.effects_ms += effect_ms
        if len(into.differences) < into.listed_max:
            difference = Difference(
                request_id=about,
                attempt=was.attempt,
                kind="order" if was.kind == "order" else "placed",
                recorded=was.what,
                instead=would.what,
                effect_ms=effect_ms,
            )
            into.differences.append(difference)


def _decisions(inputs: Iterable[Input], outcomes: Iterable[Outcome]) -> dict[str, Decision]:
    """By request (placements) or by window (orders)."""
    attempts = {
        card.request_id: card.attempt
        for item in inputs
        if isinstance(item, RouteWindow)
        for card in item.cards
    }
    found: dict[str, Decision] = {}
    for outcome in outcomes:
        match outcome:
            case Answer(message=RouteWindowReply() as reply):
                for plan in reply.plans:
                    found[plan.request_id] = _placed(plan)
                for wait in reply.waits:
                    attempt = attempts.get(wait.request_id, 0)
                    found[wait.request_id] = Decision(attempt, "placed", f"waits: {wait.reason}")
            case Ask(message=RouteWindow() as window):
                order = " ".join(card.request_id for card in window.cards)
                name = f"window {window.window}"
                found[name] = Decision(0, "order", order)
            case _:
                pass
    return found


def _placed(plan: Plan) -> Decision:
    """Where it went, and what the engine model says of the engines chosen, added up."""
    where = f"{plan.prefill_worker} + {plan.worker}" if plan.prefill_worker else plan.worker
    costs = [c.cost_ms for c in plan.candidates if c.chosen]
    known = [cost for cost in costs if cost is not None]
    whole = bool(known) and len(known) == len(costs)
    return Decision(plan.attempt, "placed", where, sum(known) if whole else None)
