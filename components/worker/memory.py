"""What is remembered of attempts that have ended here, so that a late dispatch changes nothing."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Last:
    attempt: int
    cancelled: bool
    until_s: float


class Memory:
    """The highest attempt of each request that ended or was cancelled. Bounded, with a TTL."""

    def __init__(self, requests_max: int, ttl_s: float) -> None:
        self._requests_max = requests_max
        self._ttl_s = ttl_s
        self._last: OrderedDict[str, _Last] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def add(self, request_id: str, attempt: int, now_s: float, *, cancelled: bool) -> None:
        """This attempt has ended, or (``cancelled``) nobody wants it."""
        last = self._last.get(request_id)
        if last is not None and last.attempt > attempt:
            return
        self._last[request_id] = _Last(attempt, cancelled, now_s + self._ttl_s)
        self._last.move_to_end(request_id)
        while len(self._last) > self._requests_max:
            self._last.popitem(last=False)

    def has_run(self, request_id: str, attempt: int) -> bool:
        """This attempt, or a higher one, has run here to its end."""
        last = self._last.get(request_id)
        return last is not None and not last.cancelled and last.attempt >= attempt

    def is_cancelled(self, request_id: str, attempt: int) -> bool:
        """Nobody wants this attempt any more."""
        last = self._last.get(request_id)
        return last is not None and last.cancelled and last.attempt >= attempt

    def expire(self, now_s: float) -> None:
        """Forget what is older than the TTL."""
        while self._last and next(iter(self._last.values())).until_s <= now_s:
            self._last.popitem(last=False)
