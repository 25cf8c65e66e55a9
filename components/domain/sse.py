"""Server-sent events from bytes in any pieces: a read may hold half an event, or several. Pure.

Lines may end in LF or CR LF; several ``data`` lines of one event are joined by LF; comments and
other fields are skipped (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from typing import Final

#: An event of more bytes than this is not one of ours; the stream is given up. Prompt logprobs of
#: a long prompt come in one.
EVENT_BYTES_MAX: Final = 64 * 1024 * 1024
DONE: Final = b"[DONE]"


class EventTooLong(ValueError):
    """The peer sends an event without end."""


class Events:
    """``feed`` gives the payloads of ``data`` lines, one per event, that a read has completed."""

    __slots__ = ("_bytes_max", "_data", "_pieces", "_size")

    def __init__(self, bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._pieces: list[bytes] = []  # of the line that has not ended yet
        self._size = 0
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises ``EventTooLong``."""
        if b"\n" not in piece:
            self._keep(piece)
            return []
        first, *lines = piece.split(b"\n")
        lines.insert(0, b"".join((*self._pieces, first)))
        self._pieces.clear()
        self._size = 0
        self._keep(lines.pop())
        return [payload for line in lines if (payload := self._line(line)) is not None]

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._bytes_max:
            raise EventTooLong(f"an event of more than {self._bytes_max} bytes")
        if piece:
            self._pieces.append(piece)

    def _line(self, line: bytes) -> bytes | None:
        """The payload of the event that this line ends, if it ends one."""
        line = line.removesuffix(b"\r")
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            payload = b"\n".join(self._data)
            self._data.clear()
            return payload
        return None
