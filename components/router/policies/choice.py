"""What a policy sees and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that may take the attempt now.

    ``load`` counts sequences on it, own dispatches included; ``room`` how many more it takes.
    """

    worker: str
    load: int
    room: int
    queued_tokens: int


class Choose(Protocol):
    """A policy: a plain function of the candidates (never empty, sorted by name).

    ``last`` is the worker that the same role of the same shard got last, so that prefill and
    decode take turns independently.
    """

    def __call__(self, candidates: Sequence[Candidate], last: str) -> Candidate: ...
