"""Server-sent events from bytes in any pieces. Knows nothing of sockets."""

from typing import Final

#: An event of more bytes than this is not one of ours; the stream is given up.
EVENT_BYTES_MAX: Final = 8 * 1024 * 1024


class EventTooLong(ValueError):
    """The peer sends an event without end."""


class EventReader:
    """Feed it what a socket gave; it returns the ``data`` of the events that this completed.

    Lines may end in LF or CR LF; several ``data`` lines of one event are joined by LF; comments and
    other fields are skipped (https://html.spec.whatwg.org/multipage/server-sent-events.html).
    """

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The payloads completed by ``piece``; raises ``EventTooLong``."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > EVENT_BYTES_MAX:
            raise EventTooLong(f"a line of more than {EVENT_BYTES_MAX} bytes")
        events = []
        for ended in lines:
            line = ended.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events
