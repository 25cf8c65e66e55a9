"""What the router believes of one engine: its last report, plus what the report cannot know yet.

Load = running + waiting of the last report
     + own dispatches that the report does not contain
     - own dispatches that it contains and that ended since.

An engine reports, per router and epoch, the highest dispatch that it has taken in (``admitted``).
Every term returns to zero when the engine is idle: a report of an idle engine clears the dispatches
it contains, an end removes its own, and a new life of the worker starts from nothing.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from schemas.engine import EngineLoadReported
from schemas.fleet import HeartbeatSent


@dataclass(slots=True)
class Dispatch:
    """One attempt given to the engine: ``seq`` of it, sequences and prompt tokens it brings."""

    seq: int
    sequences: int
    tokens: int


@dataclass(slots=True)
class EngineView:
    """One life of one worker."""

    heartbeat: HeartbeatSent
    report: EngineLoadReported | None = None
    report_seq: int = 0
    report_s: float = 0.0
    dispatched: int = 0
    admitted: int = 0
    ended_sequences: int = 0
    ended_tokens: int = 0
    open: dict[str, Dispatch] = field(default_factory=dict)

    def on_report(
        self, report: EngineLoadReported, seq: int, now_s: float, router: str, epoch: int
    ) -> bool:
        """Take a newer snapshot; an older one never overwrites it. Returns whether it was taken."""
        if report.engine_epoch != self.heartbeat.process_epoch or seq <= self.report_seq:
            return False
        self.report, self.report_seq, self.report_s = report, seq, now_s
        self.admitted = next(
            (
                a.dispatch_seq
                for a in report.admitted
                if a.router == router and a.router_epoch == epoch
            ),
            0,
        )
        self.ended_sequences = self.ended_tokens = 0
        if report.running == 0 and report.waiting == 0:
            self.open = {k: d for k, d in self.open.items() if d.seq > self.admitted}
        return True

    def dispatch(self, key: str, sequences: int, tokens: int) -> int:
        """Reserve for an attempt; returns its dispatch sequence."""
        self.dispatched += 1
        self.open[key] = Dispatch(self.dispatched, sequences, tokens)
        return self.dispatched

    def end(self, key: str) -> bool:
        """The attempt ended or was refused; returns whether it was open."""
        dispatch = self.open.pop(key, None)
        if dispatch is None:
            return False
        if dispatch.seq <= self.admitted:
            self.ended_sequences += dispatch.sequences
            self.ended_tokens += dispatch.tokens
        return True

    def is_fresh(self, now_s: float, stale_after_s: float) -> bool:
        """Stale means ineligible, never idle."""
        return self.report is not None and now_s - self.report_s <= stale_after_s

    @property
    def load(self) -> int:
        """Sequences on the engine, as well as we can know."""
        if self.report is None:
            return 0
        unseen = sum(d.sequences for d in self.open.values() if d.seq > self.admitted)
        return max(0, self.report.running + self.report.waiting - self.ended_sequences) + unseen

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that the engine has still to compute."""
        if self.report is None:
            return 0
        unseen = sum(d.tokens for d in self.open.values() if d.seq > self.admitted)
        return max(0, self.report.queued_tokens - self.ended_tokens) + unseen

    @property
    def free_pages(self) -> int:
        """KV pages that neither the report nor an unseen dispatch has taken."""
        if self.report is None:
            return 0
        unseen = sum(pages_of(d.tokens) for d in self.open.values() if d.seq > self.admitted)
        return self.report.kv_pages_total - self.report.kv_pages_used - unseen

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a snapshot."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["heartbeat"] = self.heartbeat.model_dump()
        plain["report"] = self.report.model_dump() if self.report else None
        plain["open"] = [[k, d.seq, d.sequences, d.tokens] for k, d in self.open.items()]
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "EngineView":
        """What ``to_plain`` gave."""
        report = plain["report"]
        rebuilt = {
            "heartbeat": HeartbeatSent.model_validate(plain["heartbeat"]),
            "report": EngineLoadReported.model_validate(report) if report else None,
            "open": {k: Dispatch(*rest) for k, *rest in plain["open"]},
        }
        return cls(**{**plain, **rebuilt})


def pages_of(tokens: int) -> int:
    """KV pages of 16 tokens for a prompt, and one to write into."""
    return tokens // 16 + 1
