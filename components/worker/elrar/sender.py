"""The socket and the clock of ELRAR's agent. An engine never waits for it, nor fails with it."""

import json
import logging
import socket
import threading
import time
from typing import Any, Final

from components.worker.elrar.core import EngineState, Step
from components.worker.elrar.settings import ElrarSettings

log: Final = logging.getLogger("switchyard.elrar")

_LOOK_S: Final = 0.05
#: No packet goes there: that this machine would send it from one of its addresses is the answer.
_ANYWHERE: Final = ("192.0.2.1", 9)


class Sender:
    """Says the state of one engine: in its step, or from a thread when it makes none."""

    def __init__(self, settings: ElrarSettings, state: EngineState) -> None:
        """Raises ``OSError`` for a host that there is not."""
        self._state = state
        self._lock = threading.Lock()
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_DGRAM)
        family, kind, _, _, to = found[0]
        self._to: Any = to
        self._socket = socket.socket(family, kind)
        self._socket.setblocking(False)
        if settings.mode == "broadcast":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._ended = threading.Event()
        self.sent = 0
        self.lost = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="elrar")
        self._thread.start()

    def on_step(self, step: Step) -> None:
        """A step has ended; microseconds."""
        with self._lock:
            self._state.on_step(step)
            self._say_if_due()

    def close(self) -> None:
        """Nothing is said any more."""
        self._ended.set()
        self._thread.join(1.0)
        self._socket.close()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            with self._lock:
                self._say_if_due()

    def _say_if_due(self) -> None:
        now_s = time.monotonic()
        if not self._state.due(now_s):
            return
        data = json.dumps(self._state.say(now_s, time.time_ns() // 1_000_000)).encode()
        try:
            self._socket.sendto(data, self._to)
            self.sent += 1
        except OSError as error:
            if not self.lost:
                log.warning("a state could not be sent to %s: %s", self._to, error)
            self.lost += 1


def own_address() -> str:
    """This machine's address towards others; empty when it has none. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_ANYWHERE)
            return str(probe.getsockname()[0])
    except OSError:
        return ""
