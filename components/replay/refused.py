"""A question about the past that cannot be answered as it was asked."""

from typing import Final

from schemas.past import PastRefusal


class Refused(Exception):
    """``code`` is for programs, the message says what to do."""

    def __init__(self, code: PastRefusal, why: str) -> None:
        super().__init__(why)
        self.code: Final[PastRefusal] = code
