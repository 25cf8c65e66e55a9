"""Which prefill and which decode server a job gets. Pure; a new rule is a class and a table entry.

A policy sees the servers that may be chosen, each list non-empty, and answers with two places.
``draw(n)`` is uniform in 0 .. n - 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from components.worker.sglang.rooms import Draw


class Loaded(Protocol):
    """What a policy may know of a server."""

    @property
    def in_flight(self) -> int:
        """Sequences of ours that it has."""
        ...


class PairPolicy(Protocol):
    """One rule. It may keep counters; both lists may differ from call to call."""

    def choose(self, prefills: Sequence[Loaded], decodes: Sequence[Loaded]) -> tuple[int, int]:
        """Places of the chosen two."""
        ...


class RandomPair:
    """Any prefill server, and independently of it any decode server."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def choose(self, prefills: Sequence[Loaded], decodes: Sequence[Loaded]) -> tuple[int, int]:
        return self._draw(len(prefills)), self._draw(len(decodes))


class RoundRobinPair:
    """Each side in turn, and every prefill server with every decode server.

    With one counter for both sides, two and two servers would only ever meet as first with first
    and second with second. So decode steps on by one more whenever all pairs of a turn were used.
    """

    def __init__(self, draw: Draw) -> None:  # the signature of the table
        self._jobs = 0

    def choose(self, prefills: Sequence[Loaded], decodes: Sequence[Loaded]) -> tuple[int, int]:
        jobs, self._jobs = self._jobs, self._jobs + 1
        turn = math.lcm(len(prefills), len(decodes))
        return jobs % len(prefills), (jobs + jobs // turn) % len(decodes)


class LeastRequestsPair:
    """On each side the server with the fewest sequences of ours; by lot between equals."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def choose(self, prefills: Sequence[Loaded], decodes: Sequence[Loaded]) -> tuple[int, int]:
        return self._least(prefills), self._least(decodes)

    def _least(self, servers: Sequence[Loaded]) -> int:
        fewest = min(server.in_flight for server in servers)
        equals = [place for place, server in enumerate(servers) if server.in_flight == fewest]
        return equals[self._draw(len(equals))]


POLICIES: Final[Mapping[str, Callable[[Draw], PairPolicy]]] = {
    "random": RandomPair,
    "round_robin": RoundRobinPair,
    "least_requests": LeastRequestsPair,
}
