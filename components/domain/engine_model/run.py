"""Steps that differ by their context only, planned at once; and what one of them was."""

from dataclasses import dataclass, field
from math import sqrt

from components.domain.engine_model.state import Sequence


@dataclass(frozen=True, slots=True)
class StepWork:
    """One step: the time it took, and what was in it.

    `tokens` computed of `running` sequences that had `context_tokens` before.
    """

    took_s: float
    tokens: int
    running: int
    context_tokens: int


@dataclass(slots=True)
class Run:
    """`steps` steps from `start_s` on, the first `base_s` long and each `growth_s` longer.

    `done` of them have ended. With `chunks` (prompt, tokens) there is one step only. `tokens` of
    `running` sequences are computed in each, with `context_tokens` of these before the first one.
    """

    start_s: float
    base_s: float
    growth_s: float
    steps: int
    first_tick: int
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    done: int = 0
    tokens: int = 0
    running: int = 0
    context_tokens: int = 0

    def end_s(self, step: int) -> float:
        """End of the `step`-th step; of step 0 the start of the run."""
        return self.start_s + step * self.base_s + self.growth_s * (step * (step - 1) // 2)

    def ended_by(self, now_s: float) -> int:
        """How many steps have ended at `now_s`."""
        if now_s < self.end_s(self.done + 1):
            return self.done
        if now_s >= self.end_s(self.steps):
            return self.steps
        # The root of end_s(j) = now_s, in the form that also holds for growth 0; rounding can put
        # it one off, and `end_s` is what counts.
        elapsed_s, half_s = now_s - self.start_s, self.base_s - self.growth_s / 2
        ended = int(2 * elapsed_s / (half_s + sqrt(half_s**2 + 2 * self.growth_s * elapsed_s)))
        while self.end_s(ended + 1) <= now_s:
            ended += 1
        while self.end_s(ended) > now_s:
            ended -= 1
        return ended

    def last_step(self) -> StepWork | None:
        """The last step that ended; None before there is one."""
        if not self.done:
            return None
        grown = (self.done - 1) * self.running  # by a token of each sequence in each step
        return StepWork(
            took_s=self.end_s(self.done) - self.end_s(self.done - 1),
            tokens=self.tokens,
            running=self.running,
            context_tokens=self.context_tokens + grown,
        )
