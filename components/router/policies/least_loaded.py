"""The engine with the fewest sequences, then the fewest queued tokens; ties take turns."""

from collections.abc import Sequence

from components.router.policies.choice import Candidate
from components.router.policies.round_robin import round_robin


def least_loaded(candidates: Sequence[Candidate], last: str) -> Candidate:
    """The least of (load, queued tokens)."""
    least = min((c.load, c.queued_tokens) for c in candidates)
    return round_robin([c for c in candidates if (c.load, c.queued_tokens) == least], last)
