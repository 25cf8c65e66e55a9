"""What a policy sees and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from schemas.request import RequestCard

#: Engines of one role, to a policy that gives whole requests to one of the two.
Pool = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that may take the attempt now.

    ``load`` counts sequences on it, own dispatches included; ``room`` how many more it takes.
    """

    worker: str
    load: int
    room: int
    queued_tokens: int


@dataclass(frozen=True, slots=True)
class ClassBounds:
    """Where one class of request ends and the other begins.

    Heavier on the prompt is what has more than ``prompt_tokens`` to compute, or more than ``ratio``
    times the tokens still to write; ``output_tokens`` are expected of a choice without a limit.
    """

    prompt_tokens: int
    ratio: float
    output_tokens: int


class Choose(Protocol):
    """Which engine: a plain function of the candidates (never empty, sorted by name).

    ``last`` is the worker that the same role of the same shard got last, so that prefill and
    decode take turns independently.
    """

    def __call__(self, candidates: Sequence[Candidate], last: str) -> Candidate: ...


class PoolOf(Protocol):
    """Which pool serves this request whole: a plain function of its card."""

    def __call__(self, card: RequestCard, bounds: ClassBounds) -> Pool: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """How engines are chosen. Without ``pool_of``, prefill and decode engines share a request."""

    choose: Choose
    pool_of: PoolOf | None = None
