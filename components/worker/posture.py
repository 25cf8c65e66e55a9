"""How an engine stands: its role, whether it works, and whether it takes more. Pure.

Operators change it, one wish at a time: ``begin`` says why not, or takes note of the wish; ``end``
makes it so, or leaves everything as it was. Between the two lies whatever the engine or the work in
it needs, and that is the shell's to wait for.
"""

from dataclasses import dataclass
from typing import Final

from schemas.codes import EngineAction, EngineActivity, Phase, Role
from schemas.engine import ControlEngine

#: While one of these is under way nothing new is taken.
_CLOSES: Final[frozenset[EngineAction]] = frozenset(("pause", "sleep", "set_role"))
#: What each of them makes of the engine.
_LEADS_TO: Final[dict[EngineAction, EngineActivity]] = {
    "pause": "paused",
    "resume": "running",
    "sleep": "asleep",
    "wake": "running",
}


@dataclass(slots=True)
class Posture:
    """See the top of the file. ``doing`` is the wish that is under way."""

    role: Role
    activity: EngineActivity = "running"
    accepting: bool = True
    doing: EngineAction | None = None

    @property
    def is_open(self) -> bool:
        """Nobody has said that it shall take nothing new, nor is about to."""
        return self.accepting and self.doing not in _CLOSES

    @property
    def takes_new(self) -> bool:
        """May an attempt come now?"""
        return self.is_open and self.activity == "running"

    def begin(self, control: ControlEngine, phases: frozenset[Phase]) -> str:
        """Take note of a wish; else why not. ``phases`` are those that the engine can do."""
        if self.doing is not None:
            return f"busy: {self.doing} is under way"
        objection = self._objection(control, phases)
        if not objection:
            self.doing = control.action
        return objection

    def end(self, control: ControlEngine, *, done: bool) -> None:
        """The wish that ``begin`` took is fulfilled, or given up."""
        self.doing = None
        if not done:
            return
        action = control.action
        if action in _LEADS_TO:
            self.activity = _LEADS_TO[action]
        elif action in {"drain", "accept"}:
            self.accepting = action == "accept"
        elif control.role is not None:
            self.role = control.role

    def needs_engine(self, control: ControlEngine) -> bool:
        """Has the engine itself something to do? Not for a state it is in already."""
        wanted = _LEADS_TO.get(control.action)
        if wanted is None:
            return control.action == "reset_prefix_cache"
        return wanted != self.activity or (control.action == "pause" and not control.keep)

    def _objection(self, control: ControlEngine, phases: frozenset[Phase]) -> str:
        action = control.action
        if self.activity == "asleep" and action in {"pause", "resume", "reset_prefix_cache"}:
            return "asleep: wake it first"
        if self.activity == "paused" and action == "wake":
            return "paused, not asleep: resume it"
        return self._objection_to_role(control.role, phases) if action == "set_role" else ""

    def _objection_to_role(self, role: Role | None, phases: frozenset[Phase]) -> str:
        if role is None:
            return "which role?"
        if role not in phases:
            return f"unsupported: this engine cannot {role}"
        if self.activity != "running":
            return f"{self.activity}: what it holds would not end"
        return ""
