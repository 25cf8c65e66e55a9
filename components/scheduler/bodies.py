"""Bodies that ride inside the control path while their requests are queued."""


class Bodies:
    """Request id -> body, at most ``bytes_max``; the oldest goes first.

    A body that is missing costs a question: the worker then asks the gateway for it.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._held: dict[str, tuple[int, bytes]] = {}

    def put(self, request_id: str, attempt: int, body: bytes) -> None:
        """Keep the body of the latest attempt: a continuation's holds the emitted ids."""
        known = self._held.get(request_id)
        if known and known[0] > attempt:
            return
        self.drop(request_id)
        self._held[request_id] = (attempt, body)
        self._bytes += len(body)
        while self._bytes > self._bytes_max:
            self.drop(next(iter(self._held)))

    def get(self, request_id: str, attempt: int) -> bytes | None:
        """The body that serves ``attempt``: its own, or that of the last one sent before it."""
        known = self._held.get(request_id)
        return known[1] if known and known[0] <= attempt else None

    def drop(self, request_id: str) -> None:
        """Forget it; harmless when unknown."""
        known = self._held.pop(request_id, None)
        if known:
            self._bytes -= len(known[1])
