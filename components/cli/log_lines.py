"""Lines of several logs, put in order by time. Pure: texts in, lines out.

A line without a time of its own (a traceback, what a library printed) has that of the line before
it in the same log, and so stays behind it.
"""

import heapq
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

#: 2026-11-20T18:40:00.123Z, as our processes begin a line (components/host/logs.py).
_OURS: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)(Z|[+-]\d\d:\d\d)\b")
#: [4711] 2026/11/20 18:40:00.123456 [INF] ..., as nats-server does, in local time.
_NATS: Final = re.compile(r"\[\d+\] (\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?) ")
#: [  3.21 s] ..., as `up` does: seconds since it began.
_SINCE: Final = re.compile(r"\[\s*(\d+\.\d+) s\] ")
_ESCAPES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Line:
    """``at_s`` is seconds since 1970; 0 when nothing before this line had a time either."""

    name: str
    at_s: float
    text: str


class Clock:
    """Reads the times of one log, line after line."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._began_s = 0.0

    def read(self, text: str) -> float:
        """When this line was written, as far as can be told."""
        if (since := _SINCE.match(text)) and self._began_s:
            self._at_s = self._began_s + float(since[1])
        elif (at_s := time_of(text)) is not None:
            self._at_s = at_s
            self._began_s = self._began_s or at_s
        return self._at_s


def time_of(text: str) -> float | None:
    """Seconds since 1970 of a line that begins with a time, or is JSON with one."""
    try:
        if found := _OURS.match(text):
            return datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00")).timestamp()
        if found := _NATS.match(text):
            return datetime.fromisoformat(
                f"{found[1]}-{found[2]}-{found[3]}T{found[4]}"
            ).timestamp()
        if text.startswith('{"time": "'):
            time = str(json.loads(text)["time"]).replace("Z", "+00:00")
            return datetime.fromisoformat(time).timestamp()
    except (ValueError, KeyError):
        pass
    return None


def timed(name: str, texts: Iterable[str], clock: Clock) -> list[Line]:
    """The lines of one log, never going back in time."""
    lines: list[Line] = []
    latest_s = 0.0
    for text in texts:
        latest_s = max(latest_s, clock.read(text))
        lines.append(Line(name, latest_s, text))
    return lines


def merged(logs: Iterable[list[Line]]) -> Iterator[Line]:
    """All lines by time; lines of one log keep their order."""
    return heapq.merge(*logs, key=lambda line: line.at_s)


def printable(text: str) -> str:
    """Without what a terminal would obey: a log holds what others wrote."""
    return _UNPRINTABLE.sub("?", _ESCAPES.sub("", text))


def as_json(line: Line) -> str:
    """One object: which log, when (null: unknown), what."""
    time = None
    if line.at_s:
        moment = datetime(1970, 1, 1) + timedelta(seconds=line.at_s)  # noqa: DTZ001  (is UTC)
        time = moment.isoformat(timespec="milliseconds") + "Z"
    return json.dumps({"name": line.name, "time": time, "line": line.text}, ensure_ascii=False)
