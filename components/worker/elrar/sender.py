"""The socket and the clock of ELRAR's agent. An engine never waits for it, nor fails with it."""

import json
import logging
import socket
import threading
import time
from typing import Any, Final

from components.domain.signed_frame import BadKeys, sign
from components.host.signing_keys import read_keys
from components.worker.elrar.core import EngineState, Step
from components.worker.elrar.settings import ElrarSettings

log: Final = logging.getLogger("switchyard.elrar")

_LOOK_S: Final = 0.05
#: How often the bridge's name is looked up: it may move, or be there only after the engine.
LOOKUP_S: Final = 10.0
#: No packet goes there: that this machine would send it from one of its addresses is the answer.
_ANYWHERE: Final = ("192.0.2.1", 9)


class Sender:
    """Says the state of one engine: in its step, or from a thread when it makes none.

    The thread alone looks names up, so that a name server that is slow costs no step any time.
    """

    def __init__(self, settings: ElrarSettings, state: EngineState) -> None:
        self._settings = settings
        self._state = state
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._to: Any = None
        self._ended = threading.Event()
        self._warned = False
        self.sent = 0
        self.lost = 0
        self._epoch = time.time_ns() // 1_000_000
        self._seq = 0
        self._key = self._first_key()
        self._thread = threading.Thread(target=self._run, daemon=True, name="elrar")
        self._thread.start()

    def on_step(self, step: Step) -> None:
        """A step has ended; microseconds."""
        with self._lock:
            self._state.on_step(step)
            self._say_if_due()

    def end(self) -> None:
        """Nothing is said any more. Waits for nothing."""
        self._ended.set()

    def close(self) -> None:
        """End, and wait until the socket is closed, at most a second."""
        self.end()
        self._thread.join(1.0)

    def _run(self) -> None:
        looked_up_s = float("-inf")
        while not self._ended.is_set():
            if time.monotonic() - looked_up_s >= LOOKUP_S:
                self._look_up()
                looked_up_s = time.monotonic()
            with self._lock:
                self._say_if_due()
            self._ended.wait(_LOOK_S)
        with self._lock:
            self._hang_up()

    def _look_up(self) -> None:
        host, port = self._settings.host, self._settings.port
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            with self._lock:
                self._aim(found[0][0], found[0][4])
        except (OSError, UnicodeError) as error:  # the latter: a name that no host can have
            self._warn("%s cannot be found, and is looked for again: %s", host, error)

    def _aim(self, family: socket.AddressFamily, to: Any) -> None:
        if self._socket is None or self._socket.family != family:
            self._hang_up()
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            if self._settings.mode == "broadcast":
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._to = to

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _say_if_due(self) -> None:
        now_s = time.monotonic()
        if self._socket is None or self._ended.is_set() or not self._state.due(now_s):
            return
        now_ms = time.time_ns() // 1_000_000
        data = json.dumps(self._state.say(now_s, now_ms)).encode()
        if self._key is not None:
            data = self._signed(data, now_ms)
        try:
            self._socket.sendto(data, self._to)
            self.sent += 1
        except OSError as error:
            self.lost += 1
            self._warn("a state could not be sent to %s: %s", self._to, error)

    def _first_key(self) -> tuple[str, bytes] | None:
        """Who cannot sign says nothing at all: a bridge that asks for it would not believe it."""
        file = self._settings.keys_file
        if not file:
            return None
        try:
            return next(iter(read_keys(file).items()))
        except BadKeys as error:
            self._warn("no state is sent: %s", error)
            self._ended.set()
            return None

    def _signed(self, data: bytes, now_ms: int) -> bytes:
        assert self._key is not None
        key_id, key = self._key
        self._seq += 1
        return sign(data, key_id=key_id, key=key, epoch=self._epoch, seq=self._seq, sent_ms=now_ms)

    def _warn(self, text: str, *values: object) -> None:
        """Once in a life: what goes wrong here goes wrong five times a second."""
        if not self._warned:
            self._warned = True
            log.warning(text, *values)


def own_address() -> str:
    """This machine's address towards others; empty when it has none. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_ANYWHERE)
            return str(probe.getsockname()[0])
    except OSError:
        return ""
