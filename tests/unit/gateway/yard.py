"""The gateway's core with everything around it said by hand, and a word for each thing said."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from components.domain.bodies import Body, Emitted, decode_body, encode_body
from components.domain.outcomes import Ask, Count, Detail, Record, Send
from components.gateway.core import GatewayCore
from components.gateway.request import Deliver, End, GatewayOutcome, NewRequest, Request
from components.gateway.settings import GatewaySettings
from schemas.attempt import ResumeStreams, StreamPosition
from schemas.body import SamplingParameters
from schemas.examples import CARD, HEARTBEAT
from schemas.fleet import HeartbeatSent
from schemas.frames import Entry
from schemas.message import Message
from schemas.request import (
    RequestDispatched,
    RequestQueued,
    RequestRefused,
    ScheduleRequest,
)

M = TypeVar("M", bound=Message)
MODEL = CARD.model
END_ID = 2


class Question(NamedTuple):
    """What a worker is asked for."""

    worker: str
    message: ResumeStreams


class Yard:
    """Time stands still until a test lets it pass; outcomes pile up in ``said``."""

    def __init__(self, **settings: Any) -> None:
        self.settings = GatewaySettings.model_validate({"port": 0, **settings})
        self.core = GatewayCore(self.settings)
        self.now_s = 100.0
        self.said: list[GatewayOutcome] = []
        self.seq = 0
        self.peers: dict[str, HeartbeatSent] = {}

    # What the others say.

    def hear(self, outcomes: Sequence[GatewayOutcome]) -> "Yard":
        self.said += outcomes
        return self

    def tell(self, message: Message) -> "Yard":
        return self.hear(self.core.on_message(message, self.now_s))

    def heartbeat(self, component: str, instance: str, epoch: int = 1, **changes: Any) -> "Yard":
        fields = dict(HEARTBEAT) | {
            "component": component,
            "instance": instance,
            "process_epoch": epoch,
            "running": 0,
            **changes,
        }
        beat = HeartbeatSent(**fields)
        if beat.state == "stopped":
            self.peers.pop(instance, None)
        else:
            self.peers[instance] = beat
        return self.tell(beat)

    def silence(self, *instances: str) -> "Yard":
        for instance in instances:
            del self.peers[instance]
        return self

    def pass_s(self, seconds: float, step_s: float = 0.1) -> "Yard":
        """Let time pass: everybody who lives sends heartbeats, the core ticks."""
        start_s = self.now_s
        for step in range(1, round(seconds / step_s) + 1):
            self.now_s = round(start_s + step * step_s, 6)
            for beat in list(self.peers.values()):
                self.tell(beat)
            self.hear(self.core.on_tick(self.now_s))
        return self

    def queued(self, request: Request, attempt: int = 1) -> "Yard":
        return self.tell(
            RequestQueued(
                request_id=request.request_id, attempt=attempt, scheduler="scheduler-0", place=0
            )
        )

    def dispatched(
        self,
        request: Request,
        worker: str = "decode-0",
        attempt: int = 1,
        epoch: int = 1,
        **changes: Any,
    ) -> "Yard":
        return self.tell(
            RequestDispatched(
                **{
                    "request_id": request.request_id,
                    "attempt": attempt,
                    "worker": worker,
                    "worker_epoch": epoch,
                    "prefill_worker": None,
                    "router": "router-0",
                    "router_epoch": 1,
                    **changes,
                }
            )
        )

    def refused(self, request: Request, code: Any, attempt: int = 1, **changes: Any) -> "Yard":
        return self.tell(
            RequestRefused(request_id=request.request_id, attempt=attempt, code=code, **changes)
        )

    def frame(self, worker: str, *entries: Entry, epoch: int = 1) -> "Yard":
        return self.hear(self.core.on_frame(worker, epoch, entries, self.now_s))

    def tokens(
        self,
        request: Request,
        first: int,
        *ids: int,
        worker: str = "decode-0",
        attempt: int = 1,
        choice: int = 0,
        finish: str | None = None,
    ) -> "Yard":
        end = [finish, None, 0] if finish else None
        return self.frame(
            worker, entry(request.request_id, first, *ids, attempt=attempt, choice=choice, end=end)
        )

    def answer(
        self,
        asked: Question,
        *entries: Entry,
        unknown: Sequence[StreamPosition] = (),
        more: bool = False,
    ) -> "Yard":
        outcomes = self.core.on_resumed(
            asked.worker, asked.message, entries, unknown, self.now_s, more=more
        )
        return self.hear(outcomes)

    def no_answer(self, asked: Question) -> "Yard":
        return self.hear(self.core.on_resumed(asked.worker, asked.message, None, (), self.now_s))

    # What the gateway is asked for, and what it says.

    def fleet(self, *workers: str) -> "Yard":
        self.heartbeat("scheduler", "scheduler-0", owns=(MODEL,))
        for worker in workers or ("decode-0", "decode-1"):
            self.heartbeat("worker", worker)
        return self.forget()

    def accept(self, request_id: str = "req-1", **changes: Any) -> Request:
        sampling = SamplingParameters(
            max_tokens=changes.pop("max_tokens", 100),
            n=changes.get("choices", 1),
            ignore_eos=changes.pop("ignore_eos", False),
        )
        body = encode_body(Body(tuple(changes.pop("prompt", (1, 5, 6))), sampling))
        card = CARD.model_copy(
            update={
                "request_id": request_id,
                "output_tokens_max": sampling.max_tokens,
                "body_bytes": len(body),
                **changes,
            }
        )
        ends = frozenset() if sampling.ignore_eos else frozenset({END_ID})
        new = NewRequest(card, body, self.now_s, ends)
        request, outcomes = self.core.accept(new, self.now_s)
        self.hear(outcomes)
        return request

    def running(
        self, request_id: str = "req-1", worker: str = "decode-0", **changes: Any
    ) -> Request:
        request = self.accept(request_id, **changes)
        self.queued(request).dispatched(request, worker)
        self.forget()
        return request

    def forget(self) -> "Yard":
        self.said.clear()
        return self

    def sent(self, message: type[M]) -> list[tuple[M, tuple[str, ...]]]:
        """Messages of a class and to whom, since the last ``forget``."""
        return [
            (o.message, o.to)
            for o in self.said
            if isinstance(o, Send) and isinstance(o.message, message)
        ]

    def asked(self) -> list[Question]:
        return [
            Question(o.to[0], o.message)
            for o in self.said
            if isinstance(o, Ask) and isinstance(o.message, ResumeStreams)
        ]

    def ends(self) -> list[End]:
        return [o for o in self.said if isinstance(o, End)]

    def delivers(self) -> list[Deliver]:
        return [o for o in self.said if isinstance(o, Deliver)]

    def steps(self, request_id: str = "req-1") -> list[str]:
        return [o.step for o in self.said if isinstance(o, Record) and o.request_id == request_id]

    def detail(self, step: str) -> Detail:
        """What the first record of this step says."""
        return next(o.detail for o in self.said if isinstance(o, Record) and o.step == step)

    def count(self, name: str) -> int:
        return sum(o.by for o in self.said if isinstance(o, Count) and o.name == name)

    def scheduled(self) -> list[ScheduleRequest]:
        return [message for message, _ in self.sent(ScheduleRequest)]


def entry(
    request_id: str,
    first: int,
    *ids: int,
    attempt: int = 1,
    choice: int = 0,
    end: list[Any] | None = None,
) -> Entry:
    return (request_id, attempt, choice, first, list(ids), text_of(*ids), None, end)


def text_of(*ids: int) -> str:
    return "".join(f"w{i} " for i in ids)


def taken(request: Request, choice: int = 0) -> str:
    piece = request.streams[choice].take()
    return piece.text if piece else ""


def emitted_in(message: ScheduleRequest) -> dict[int, tuple[int, ...]]:
    """The emitted ids in the inline body, by choice."""
    assert message.body is not None
    return {c: tuple(e.token_ids) for c, e in decode_body(message.body).emitted.items()}


def finished_in(message: ScheduleRequest) -> list[int]:
    assert message.body is not None
    emitted: Any = decode_body(message.body).emitted
    return [choice for choice, e in emitted.items() if isinstance(e, Emitted) and e.finished]
