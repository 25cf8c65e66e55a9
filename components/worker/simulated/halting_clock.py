"""A clock that can be stopped: the engine model knows no other time than this one's."""

from components.host.clock import Clock


class HaltingClock:
    """``clock`` less the time that this one stood still. Seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost_s = 0.0
        self._halted_s: float | None = None

    @property
    def is_halted(self) -> bool:
        """Does it stand still?"""
        return self._halted_s is not None

    def now_s(self) -> float:
        """Monotonic, as ``Clock.now_s`` is."""
        return self._clock.now_s() - self._lost_s if self._halted_s is None else self._halted_s

    def halt(self) -> None:
        """Stand still. Harmless twice."""
        self._halted_s = self.now_s()

    def go_on(self) -> None:
        """Go on from where it was halted. Harmless twice."""
        if self._halted_s is not None:
            self._lost_s = self._clock.now_s() - self._halted_s
            self._halted_s = None
