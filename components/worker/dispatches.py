"""Which dispatches of which router are in our figures, and which routers we still obey. Pure.

A router numbers what it sends to a worker, and messages of one sender arrive in order. So the
highest number seen says that all lower ones have arrived or are lost; what is still being decided
(its body has not come) is the only thing that holds the frontier back.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from schemas.attempt import RunAttempt
from schemas.engine import Admitted

#: Routers and epochs that are remembered; the one heard of longest ago is forgotten first.
ROUTERS_MAX: Final = 16


@dataclass(slots=True)
class _Frontier:
    highest: int = 0
    undecided: set[int] = field(default_factory=set)

    @property
    def admitted(self) -> int:
        return min(self.undecided) - 1 if self.undecided else self.highest


@dataclass(slots=True)
class Dispatches:
    """All routers that have dispatched to us. ``epoch_max`` is the highest epoch obeyed."""

    epoch_max: int = 0
    _frontiers: OrderedDict[tuple[str, int], _Frontier] = field(default_factory=OrderedDict)

    def arrived(self, run: RunAttempt) -> bool:
        """Note a dispatch as undecided; False when its router's time is over."""
        if run.router_epoch < self.epoch_max:
            return False
        self.epoch_max = run.router_epoch
        frontier = self._frontiers.setdefault((run.router, run.router_epoch), _Frontier())
        self._frontiers.move_to_end((run.router, run.router_epoch))
        while len(self._frontiers) > ROUTERS_MAX:
            self._frontiers.popitem(last=False)
        frontier.highest = max(frontier.highest, run.dispatch_seq)
        frontier.undecided.add(run.dispatch_seq)
        return True

    def decided(self, run: RunAttempt) -> None:
        """It was accepted or refused. Harmless twice."""
        frontier = self._frontiers.get((run.router, run.router_epoch))
        if frontier is not None:
            frontier.undecided.discard(run.dispatch_seq)

    def admitted(self) -> tuple[Admitted, ...]:
        """For the load report: what its figures contain."""
        return tuple(
            Admitted(router=router, router_epoch=epoch, dispatch_seq=frontier.admitted)
            for (router, epoch), frontier in self._frontiers.items()
        )
