"""What an operator may choose about the reader of the past. Section ``replay``."""

from pydantic import Field

from components.host.settings import Settings


class ReplaySettings(Settings):
    """``history_key_file``: the nkey seed that lets it read streams; the host's one is for talk."""

    history_key_file: str = ""
    #: Requests that `explain` answers from its index; about 250 bytes each.
    requests_max: int = Field(default=200_000, ge=1)
    #: Questions that wait while one is answered; the next one is refused.
    questions_max: int = Field(default=64, ge=1)
    answer_timeout_s: float = Field(default=60.0, gt=0)
