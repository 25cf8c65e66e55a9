"""What every kind of link has in common: it is one handle of a library, until it is closed.

``close`` may come from any thread while another is in the library; the kinds say how to end that.
"""

import threading
from typing import Any

from components.worker.vllm.connector.link import LinkFailed, Pending, Tensor


class LinkBase:
    """``peer`` is the other end's rank; ``handle`` what the library made."""

    def __init__(self, name: str, peer: int, device: Any, handle: Any) -> None:
        self._name = name
        self._peer = peer
        self._device = device
        self._handle: Any = handle
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def device(self) -> Any:
        return self._device

    @property
    def closed(self) -> bool:
        return self._handle is None

    def send(self, tensor: Tensor, deadline_s: float) -> Pending:
        return self._begin("send", tensor, deadline_s)

    def receive(self, tensor: Tensor, deadline_s: float) -> Pending:
        return self._begin("recv", tensor, deadline_s)

    def close(self) -> None:
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            self._end(handle)

    def check_open(self) -> None:
        """Raises ``LinkFailed``: what was under way when a link was closed has not gone well."""
        if self.closed:
            raise LinkFailed(f"link {self._name} is closed")

    def _begin(self, call: str, tensor: Tensor, deadline_s: float) -> Pending:
        """Start this call of the library; raises ``LinkFailed``."""
        raise NotImplementedError

    def _end(self, handle: Any) -> None:
        """Give back what the library holds, and wake whoever waits in it."""
        raise NotImplementedError
