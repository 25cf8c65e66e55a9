"""A router's core and workers that report as a test says."""

from typing import TypeVar

from components.domain.outcomes import Answer, Outcome, Send
from components.router.core import RouterCore
from components.router.settings import RouterSettings
from schemas.attempt import AttemptReported
from schemas.engine import EngineLoadReported
from schemas.examples import CARD, HEARTBEAT, LOAD, example
from schemas.message import Message
from schemas.request import RequestCard
from schemas.routing import RouteWindow, RouteWindowReply

M = TypeVar("M", bound=Message)
SHARD = LOAD.shard
PAIR = (("prefill-0", "prefill"), ("decode-0", "decode"))


def card(request_id: str, **changes: object) -> RequestCard:
    return CARD.model_copy(update={"request_id": request_id, **changes})


def load(name: str, role: str, **changes: object) -> EngineLoadReported:
    idle = {"engine": name, "engine_epoch": 1, "role": role, "running": 0, "waiting": 0}
    empty = {"admitted": (), "router_epoch_max": 0, "kv_pages_used": 0, "queued_tokens": 0}
    return LOAD.model_copy(update={**idle, **empty, "seqs_max": 4, **changes})


class Yard:
    """A router and some idle workers that report as told; time is counted in reports."""

    def __init__(self, *workers: tuple[str, str], warm: bool = True, **settings: object) -> None:
        self.core = RouterCore("router-0", RouterSettings.model_validate(settings))
        self.seq = 0
        self.windows = 0
        self.workers = workers
        self.now_s = 0.0
        for name, role in workers:
            self.beat(name, role)
            self.report(load(name, role))
        if warm:
            self.core.on_tick(0.0)
            self.core.on_tick(0.5)
            self.now_s = 0.5

    def beat(self, name: str, role: str, epoch: int = 1) -> list[Outcome]:
        update = {"instance": name, "role": role, "process_epoch": epoch}
        return self.core.on_message(HEARTBEAT.model_copy(update=update), self.now_s)

    def report(self, report: EngineLoadReported, seq: int | None = None) -> list[Outcome]:
        self.seq += 1
        return self.core.on_message(report, self.now_s, seq or self.seq)

    def ended(self, request_id: str, worker: str, **changes: object) -> list[Outcome]:
        base = example(AttemptReported, request_id=request_id, worker=worker, worker_epoch=1)
        return self.core.on_message(
            base.model_copy(update={"state": "ended", "finish": "stop", **changes}), self.now_s
        )

    def show(self, *cards: RequestCard) -> tuple[RouteWindowReply, list[Outcome]]:
        self.windows += 1
        window = RouteWindow(shard=SHARD, scheduler="scheduler-0", window=self.windows, cards=cards)
        outcomes = self.core.on_message(window, self.now_s)
        (answer,) = (o for o in outcomes if isinstance(o, Answer))
        assert isinstance(answer.message, RouteWindowReply)
        return answer.message, outcomes


def sent(outcomes: list[Outcome], kind: type[M]) -> list[M]:
    return [o.message for o in outcomes if isinstance(o, Send) and isinstance(o.message, kind)]
