"""What the scheduler remembers of a request and of a shard."""

from dataclasses import dataclass, fields
from typing import Any

from components.scheduler.policies import QueueOrder
from schemas.request import RequestCard
from schemas.routing import Plan


@dataclass(slots=True)
class Entry:
    """One request. ``plan`` is set while it is placed; ``orphaned_s`` since its worker was lost."""

    card: RequestCard
    queued_s: float
    deadline_s: float
    shown: bool = False
    plan: Plan | None = None
    router: str = ""
    router_epoch: int = 0
    orphaned_s: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a snapshot."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["card"] = self.card.model_dump()
        plain["plan"] = self.plan.model_dump() if self.plan else None
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Entry":
        """What ``to_plain`` gave."""
        plan = Plan.model_validate(plain["plan"]) if plain["plan"] else None
        return cls(**{**plain, "card": RequestCard.model_validate(plain["card"]), "plan": plan})


@dataclass(slots=True)
class Window:
    """A question to a router that was not answered yet."""

    number: int
    router: str
    asked_s: float
    request_ids: list[str]


@dataclass(slots=True)
class Shard:
    """The queue of one shard. ``blocked_until_s`` holds windows back after one found no room."""

    queue: QueueOrder
    window: Window | None = None
    blocked_until_s: float = 0.0

    def to_plain(self) -> list[Any]:
        """Plain values for a snapshot: ids in order, the open window, the block."""
        w = self.window
        window = [w.number, w.router, w.asked_s, w.request_ids] if w else None
        return [list(self.queue), window, self.blocked_until_s]
