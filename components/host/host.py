"""What every component gets from the process that runs it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from bus.bus import Bus
from components.host.clock import Clock
from components.host.counters import Counters
from components.host.recorder import Recorder
from components.host.settings import HostSettings
from components.host.tasks import Tasks


def _go_on(error: BaseException) -> None:
    """What a host without a process does about a fault."""


@dataclass(slots=True)
class Host:
    """One process's surroundings. ``bus.source`` is ``instance``, ``bus.epoch`` is ``epoch``.

    ``epoch`` is the start of the process in ms since 1970.
    """

    component: str
    instance: str
    epoch: int
    bus: Bus
    clock: Clock
    tasks: Tasks
    recorder: Recorder
    counters: Counters
    settings: HostSettings = field(default_factory=HostSettings)
    #: Called with each fault; the process puts its own stop here.
    on_fault: Callable[[BaseException], None] = _go_on

    @property
    def log(self) -> logging.Logger:
        """The component's logger. No prompts, no secrets."""
        return logging.getLogger(f"switchyard.{self.component}")

    def fault(self, error: BaseException) -> None:
        """We were wrong: log it with its traceback, drain, exit with 70."""
        self.counters.add("faults_total")
        self.log.error("fault: %s", error, exc_info=error)
        self.on_fault(error)
