"""When a process that ended is started again. Pure: times in, a decision out.

The first time at once, because most deaths are single; then after 0.1 s, 0.2 s, 0.4 s ... 5 s,
because a process that dies at once each time would otherwise take a core. A long life clears the
record. Nothing is ever given up: what keeps dying is called a crash loop and said aloud.
"""

from dataclasses import dataclass
from typing import Final

FIRST_PAUSE_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0
#: A life of this length wipes out the deaths before it.
STEADY_S: Final = 30.0
#: So many deaths without a steady life between them are a crash loop.
LOOP_DEATHS: Final = 5


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again ``after_s`` from now; ``deaths`` in a row so far, this one included."""

    after_s: float
    deaths: int

    @property
    def is_crash_loop(self) -> bool:
        return self.deaths >= LOOP_DEATHS

    @property
    def is_news(self) -> bool:
        """Worth a line? Every single death is, a loop's only when their number has doubled."""
        rounds, rest = divmod(self.deaths, LOOP_DEATHS)
        return self.deaths <= LOOP_DEATHS or (rest == 0 and rounds.bit_count() == 1)


@dataclass(slots=True)
class Restarts:
    """The deaths of one process."""

    deaths: int = 0
    _started_s: float = 0.0

    def on_start(self, now_s: float) -> None:
        self._started_s = now_s

    def on_exit(self, now_s: float) -> Restart:
        """It ended without being told to: when to start it again."""
        if now_s - self._started_s >= STEADY_S:
            self.deaths = 0
        self.deaths += 1
        return Restart(pause_s(self.deaths), self.deaths)


def pause_s(deaths: int) -> float:
    """0, 0.1, 0.2, 0.4 ... 5 seconds before the 1st, 2nd, 3rd ... restart in a row."""
    # The exponent is bounded before the power is taken: a loop may run for months.
    return 0.0 if deaths <= 1 else min(FIRST_PAUSE_S * 2.0 ** min(deaths - 2, 16), PAUSE_MAX_S)
