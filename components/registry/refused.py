"""Why a record is not changed or shown."""

from typing import Final, Generic, TypeVar

R = TypeVar("R", bound=str)


class Refused(Exception, Generic[R]):
    """It stays as it is; ``reason`` is for programs, the text for people."""

    def __init__(self, reason: R, detail: str) -> None:
        super().__init__(detail)
        self.reason: Final[R] = reason
