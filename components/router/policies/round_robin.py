"""Each in turn: the first by name after the last one chosen."""

from collections.abc import Sequence

from components.router.policies.choice import Candidate


def round_robin(candidates: Sequence[Candidate], last: str) -> Candidate:
    """The next name after ``last``, around the end; engines that come and go do not disturb it."""
    return next((c for c in candidates if c.worker > last), candidates[0])
