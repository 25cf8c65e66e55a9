"""What was asked on one subject since the start, in the figures of NATS's micro services."""

from dataclasses import dataclass


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
        """It was no question of this kind, or the handler raised.

        Only what kind of error is kept: its text may repeat what somebody asked, and clients of
        every tenant may see these figures.
        """
        self.errors += 1
        self.last_error = getattr(error, "code", type(error).__name__)
