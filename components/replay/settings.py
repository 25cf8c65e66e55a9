"""What an operator may choose about the reader of the past. Section ``replay``."""

from components.host.settings import Settings


class ReplaySettings(Settings):
    """``history_key_file``: the nkey seed that lets it read streams; the host's one is for talk."""

    history_key_file: str = ""
