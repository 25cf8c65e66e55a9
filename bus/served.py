"""What was asked on one subject since the start, in the figures of NATS's micro services."""

from dataclasses import dataclass
from typing import Final

_ERROR_CHARS_MAX: Final = 200


@dataclass(slots=True)
class Served:
    """``spent_ns``: in handlers. What goes on beside them, as a stream of tokens, is not in it."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    spent_ns: int = 0

    def took(self, spent_ns: int) -> None:
        """A question was handled, well or not."""
        self.requests += 1
        self.spent_ns += spent_ns

    def failed(self, error: BaseException) -> None:
        """It was no question of this kind, or the handler raised."""
        self.errors += 1
        self.last_error = f"{type(error).__name__}: {error}"[:_ERROR_CHARS_MAX]
