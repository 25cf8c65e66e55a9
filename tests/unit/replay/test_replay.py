"""The journal is the whole cause: the same inputs give the same decisions, another one does not."""

import random

import pytest

from bus import codec
from bus.errors import MalformedMessage
from components.domain.outcomes import Core, Outcome, Record, Send
from components.host.journal import Input, Resumed, Tick, pack_inputs, pack_outcomes, unpack_inputs
from components.replay.check import Report, compare_with_history, replay
from components.router.core import RouterCore
from components.router.settings import RouterSettings
from components.scheduler.core import SchedulerCore
from components.scheduler.settings import SchedulerSettings
from schemas.examples import CARD, HEARTBEAT, LOAD, example
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.message import Message
from schemas.request import CancelRequest, RequestEvent, RequestRefused, ScheduleRequest
from schemas.routing import RouteWindow

SETTINGS = {"scheduler": SchedulerSettings(), "router": RouterSettings()}


class Journalist:
    """Feeds a core as its process would, and keeps what that process would publish."""

    def __init__(self, component: str) -> None:
        self.component = component
        self.core: Core = (
            SchedulerCore("scheduler-0", SETTINGS["scheduler"])  # type: ignore[arg-type]
            if component == "scheduler"
            else RouterCore("router-0", SETTINGS["router"])  # type: ignore[arg-type]
        )
        self.entries: list[JournalAppended] = []
        self.snapshots = [self.snapshot(0.0)]
        self.outcomes: list[Outcome] = []

    def snapshot(self, now_s: float) -> JournalSnapshotted:
        return example(
            JournalSnapshotted,
            component=self.component,
            owner=f"{self.component}-0",
            index=len(self.entries),
            now_s=now_s,
            settings=SETTINGS[self.component].model_dump_json(),
            state=codec.pack(self.core.snapshot()),
        )

    def turn(self, now_s: float, *inputs: Input) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for item in inputs:
            match item:
                case Tick():
                    outcomes += self.core.on_tick(now_s)
                case Resumed():
                    outcomes += self.core.on_resume(now_s)
                case Message():
                    outcomes += self.core.on_message(item, now_s)
        entry = example(
            JournalAppended,
            owner=f"{self.component}-0",
            index=len(self.entries) + 1,
            now_s=now_s,
            inputs=pack_inputs(list(inputs)),
            outcomes=pack_outcomes(outcomes),
        )
        self.entries.append(codec.decode(_wire(entry)).message)  # type: ignore[arg-type]
        self.outcomes += outcomes
        return outcomes

    def check(self, snapshot: int = 0) -> Report:
        return replay(self.snapshots[snapshot], self.entries, lambda ref: None)[0]


def _wire(message: Message) -> bytes:
    return codec.encode(message, traceparent=None, source="scheduler-0", epoch=1, seq=1)


def random_life(component: str, seed: int, turns: int = 300) -> Journalist:
    """A busy life: requests, cancels, windows, heartbeats, reports, ticks and pauses at random."""
    rng = random.Random(seed)
    life = Journalist(component)
    now_s = 10.0
    for number in range(turns):
        now_s += rng.random() * 0.3
        name = f"r{rng.randrange(40)}"
        card = CARD.model_copy(update={"request_id": name, "attempt": rng.randrange(1, 4)})
        worker = rng.choice(["decode-0", "decode-1", "prefill-0"])
        life_epoch = rng.randrange(1, 3)
        role = worker.split("-", 1)[0]
        choices: list[Input] = [
            Tick(),
            Tick(),
            Resumed(),
            HEARTBEAT.model_copy(
                update={"instance": worker, "role": role, "process_epoch": life_epoch}
            ),
            HEARTBEAT.model_copy(
                update={"component": "router", "instance": "router-0", "owns": (CARD.model,)}
            ),
        ]
        if component == "scheduler":
            choices += [ScheduleRequest(card=card), ScheduleRequest(card=card)]
            choices += [CancelRequest(request_id=name)]
        else:
            choices += [
                RouteWindow(shard=LOAD.shard, scheduler="s", window=number, cards=(card,)),
                LOAD.model_copy(
                    update={
                        "engine": worker,
                        "role": role,
                        "engine_epoch": life_epoch,
                        "running": rng.randrange(3),
                        "waiting": 0,
                    }
                ),
            ]
        life.turn(now_s, *rng.choices(choices, k=rng.randrange(1, 4)))
        if number % 50 == 49:
            life.snapshots.append(life.snapshot(now_s))
    return life


def test_a_life_replayed_from_its_start_gives_every_decision_again() -> None:
    for component in ("scheduler", "router"):
        for seed in range(5):
            report = random_life(component, seed).check()
            assert report.exact
            assert report.decisions > 50


def test_a_replay_may_start_at_any_snapshot() -> None:
    for component in ("scheduler", "router"):
        life = random_life(component, seed=7)
        for number in range(len(life.snapshots)):
            assert life.check(number).exact


def test_one_changed_input_changes_a_decision() -> None:
    life = random_life("scheduler", seed=1)
    for at, entry in enumerate(life.entries):
        inputs = unpack_inputs(entry.inputs)
        for place, item in enumerate(inputs):
            if not isinstance(item, ScheduleRequest):
                continue
            other = item.card.model_copy(update={"prompt_tokens": item.card.prompt_tokens + 1})
            inputs[place] = ScheduleRequest(card=other)
            life.entries[at] = entry.model_copy(update={"inputs": pack_inputs(inputs)})
            if not life.check().exact:
                return
    raise AssertionError("no input mattered")


def test_a_missing_entry_is_named() -> None:
    life = random_life("scheduler", seed=2)
    del life.entries[100]
    assert life.check().gaps == [102]


def test_an_outcome_without_a_journal_entry_is_named() -> None:
    life = random_life("scheduler", seed=3)
    report, outcomes = replay(life.snapshots[0], life.entries, lambda ref: None)
    records = [o for o in outcomes if isinstance(o, Record)]
    history = [
        RequestEvent(request_id=r.request_id, step=r.step, attempt=r.attempt, at_ms=1, seq=1)
        for r in records
    ]
    ghost = history[0].model_copy(update={"request_id": "ghost"})
    compare_with_history(report, outcomes, [*history[1:], ghost])
    assert report.unexplained == [("ghost", ghost.step, ghost.attempt)]
    assert report.unseen == [(history[0].request_id, history[0].step, history[0].attempt)]


def test_a_refusal_is_a_decision_too() -> None:
    life = Journalist("scheduler")
    card = CARD.model_copy(update={"attempt": 99})
    outcomes = life.turn(1.0, ScheduleRequest(card=card))
    assert any(isinstance(o, Send) and isinstance(o.message, RequestRefused) for o in outcomes)
    assert life.check().decisions == 1


UNREAD: tuple[object, ...] = (
    {},
    [["x"]],
    [["r", "a"]],
    [["m", "request.queued.v99", []]],
    [["m", "request.queued.v1", [1]]],
)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90\x90", *map(codec.pack, UNREAD)])
def test_inputs_that_are_none_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_inputs(data)
