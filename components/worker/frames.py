"""The token path of a worker: one frame per engine step and gateway, and a memory of what it said.

The cost of tokens is messages times wake-ups, so what comes out of the engine within one turn of
the event loop leaves at its end, together, one frame per gateway (more when it has over 64
entries). What left is kept for a while, within a bound, so that a gateway can ask for what it
missed.

Bounds: ``streams_max`` streams and ``kept_bytes_max`` bytes. When it is full the oldest finished
streams are forgotten first, then the oldest tokens of the longest live ones: whoever asks for
those is told that they are unknown, and goes on with another attempt.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bus import codec
from components.worker.engine import JobKey
from components.worker.stream_buffer import ChoiceBuffer
from schemas.attempt import StreamPosition
from schemas.frames import ENTRIES_MAX, HIGH_WATER_INTERVAL_S, Entry

#: An answer to ``ResumeStreams`` stays below this; the rest is asked for anew.
ANSWER_BYTES_MAX: Final = 900_000
#: What a live stream keeps when memory is short.
LIVE_IDS_KEPT: Final = 64
#: Gateways whose frames are numbered; with more than that numbering begins anew.
GATEWAYS_MAX: Final = 1024


@dataclass(slots=True)
class Stream:
    """One attempt's tokens. ``choices`` is empty until it is known where they begin."""

    gateway: str
    choices: dict[int, ChoiceBuffer] = field(default_factory=dict)
    unfinished: int = 0
    started: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(buffer.size_bytes for buffer in self.choices.values())


@dataclass(frozen=True, slots=True)
class Began:
    """The first token of this attempt has come out."""

    key: JobKey


@dataclass(frozen=True, slots=True)
class ChoiceEnded:
    """One choice is complete; ``ids`` of this attempt came out in all."""

    key: JobKey
    finish: list[Any]
    ids: int


Notable = Began | ChoiceEnded


@dataclass(frozen=True, slots=True)
class Resumed:
    """The answer to ``ResumeStreams``."""

    entries: list[Entry]
    unknown: tuple[StreamPosition, ...]
    more: bool
    rehomed: tuple[JobKey, ...] = ()


class Frames:
    """All streams of one worker.

    ``send(gateway, payload)`` publishes a frame, ``soon(flush)`` calls back at the end of the loop
    turn (``loop.call_soon``).
    """

    def __init__(
        self,
        worker_epoch: int,
        send: Callable[[str, bytes], None],
        soon: Callable[[Callable[[], None]], object],
        *,
        streams_max: int,
        kept_bytes_max: int,
        kept_s: float,
        now_s: float,
    ) -> None:
        self._epoch = worker_epoch
        self._send = send
        self._soon = soon
        self._streams_max = streams_max
        self._kept_bytes_max = kept_bytes_max
        self._kept_s = kept_s
        self._streams: dict[JobKey, Stream] = {}
        self._finished: dict[JobKey, float] = {}  # until when they are kept, in order of their end
        self._kept_bytes = 0
        self._outgoing: dict[str, list[Entry]] = {}
        self._seqs: dict[str, int] = {}
        self._now_s = now_s  # as of the last tick
        self._high_water_s = float("-inf")

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def kept_bytes(self) -> int:
        """About what the memory holds."""
        return self._kept_bytes

    # Streams come and go

    def open(self, key: JobKey, gateway: str) -> None:
        """The attempt is here; where its choices begin is not known yet."""
        if key in self._streams:
            self._forget(key)
        while len(self._streams) >= self._streams_max and self._finished:
            self._forget(next(iter(self._finished)))
        self._streams[key] = Stream(gateway)

    def begin(self, key: JobKey, starts: Mapping[int, int]) -> None:
        """The first index of each choice that will be written."""
        stream = self._streams[key]
        stream.choices = {choice: ChoiceBuffer(choice, at) for choice, at in starts.items()}
        stream.unfinished = len(starts)

    def drop(self, key: JobKey) -> None:
        """Nobody wants this attempt any more: forget it, also what has not left yet."""
        stream = self._streams.get(key)
        if stream is None:
            return
        waiting = self._outgoing.get(stream.gateway)
        if waiting:
            self._outgoing[stream.gateway] = [e for e in waiting if (e[0], e[1]) != key]
        self._forget(key)

    def fail(self, key: JobKey, reason: str) -> None:
        """The engine lost it: every choice that is not complete ends here."""
        stream = self._streams.get(key)
        if stream is None:
            return
        for buffer in stream.choices.values():
            if buffer.finish is None:
                end: Entry = (*key, buffer.choice, buffer.end, [], "", None, [reason, None, 0])
                self.add([end])

    def on_tick(self, now_s: float) -> None:
        """Forget what has been complete for long enough; once a second, say where streams are."""
        self._now_s = now_s
        for key, until_s in list(self._finished.items()):
            if until_s > now_s:
                break
            self._forget(key)
        if now_s - self._high_water_s >= HIGH_WATER_INTERVAL_S:
            self._high_water_s = now_s
            self._say_high_water()

    def _forget(self, key: JobKey) -> None:
        stream = self._streams.pop(key)
        self._finished.pop(key, None)
        self._kept_bytes -= stream.size_bytes

    # Tokens

    def add(self, entries: Sequence[Entry]) -> list[Notable]:
        """Take what one engine step gave; it leaves at the end of the loop turn."""
        notable: list[Notable] = []
        streams, outgoing = self._streams, self._outgoing
        idle = not outgoing
        for entry in entries:
            stream = streams.get((entry[0], entry[1]))
            if stream is None:
                continue
            buffer = stream.choices[entry[2]]
            self._kept_bytes += buffer.append(entry)
            waiting = outgoing.get(stream.gateway)
            if waiting is None:
                outgoing[stream.gateway] = [entry]
            else:
                waiting.append(entry)
            if not stream.started or entry[7] is not None:
                self._note(entry, stream, buffer, notable)
        if idle and outgoing:
            self._soon(self.flush)
        if self._kept_bytes > self._kept_bytes_max:
            self._make_room()
        return notable

    def _note(
        self, entry: Entry, stream: Stream, buffer: ChoiceBuffer, notable: list[Notable]
    ) -> None:
        key = (entry[0], entry[1])
        if not stream.started and entry[4]:
            stream.started = True
            notable.append(Began(key))
        if entry[7] is not None:
            stream.unfinished -= 1
            if not stream.unfinished:
                self._finished[key] = self._now_s + self._kept_s
            notable.append(ChoiceEnded(key, entry[7], buffer.written))

    def flush(self) -> None:
        """Send what waits."""
        outgoing, self._outgoing = self._outgoing, {}
        if len(self._seqs) > GATEWAYS_MAX:
            self._seqs.clear()
        for gateway, entries in outgoing.items():
            for first in range(0, len(entries), ENTRIES_MAX):
                seq = self._seqs.get(gateway, 0) + 1
                self._seqs[gateway] = seq
                part = entries[first : first + ENTRIES_MAX]
                self._send(gateway, codec.pack_frame(self._epoch, seq, part))

    def _say_high_water(self) -> None:
        """An entry without ids for each live choice: a reader notices that a tail was lost."""
        idle = not self._outgoing
        for (request_id, attempt), stream in self._streams.items():
            for buffer in stream.choices.values():
                if buffer.finish is None:
                    waiting = self._outgoing.setdefault(stream.gateway, [])
                    at = (buffer.choice, buffer.end)
                    waiting.append((request_id, attempt, *at, [], "", None, None))
        if idle and self._outgoing:
            self._soon(self.flush)

    def _make_room(self) -> None:
        """Over the bound: forget what is complete, then the beginnings of what is not."""
        while self._kept_bytes > self._kept_bytes_max and self._finished:
            self._forget(next(iter(self._finished)))
        longest = sorted(self._streams.values(), key=lambda s: s.size_bytes, reverse=True)
        for stream in longest:
            if self._kept_bytes <= self._kept_bytes_max:
                return
            for buffer in stream.choices.values():
                self._kept_bytes -= buffer.trim(LIVE_IDS_KEPT)

    # What was missed

    def resume(self, positions: Sequence[StreamPosition], gateway: str) -> Resumed:
        """Everything from these positions on, up to the size limit of one answer.

        A gateway that asks for a stream of another one has taken over its client: from now on the
        stream goes there.
        """
        entries: list[Entry] = []
        unknown: list[StreamPosition] = []
        rehomed: list[JobKey] = []
        size, more = 0, False
        for position in positions:
            key = (position.request_id, position.attempt)
            stream = self._streams.get(key)
            missing = None if stream is None else _missing(stream, position)
            if stream is None or missing is None:
                unknown.append(position)
                continue
            if stream.gateway != gateway:
                self._rehome(stream, gateway)
                rehomed.append(key)
            for entry in missing:
                size += _size_about(entry)
                more = more or size > ANSWER_BYTES_MAX
                if more:
                    break
                entries.append(entry)
        return Resumed(entries, tuple(unknown), more, tuple(rehomed))

    def _rehome(self, stream: Stream, gateway: str) -> None:
        self.flush()  # what waits belongs to the answer as well
        stream.gateway = gateway


def _missing(stream: Stream, position: StreamPosition) -> Iterable[Entry] | None:
    """What comes after the position; None when its beginning is not here any more."""
    buffer = stream.choices.get(position.choice)
    if buffer is None:
        return ()  # it has not begun
    if not buffer.start <= position.next_index <= buffer.end:
        return None
    return buffer.since(position.next_index, position.request_id, position.attempt)


def _size_about(entry: Entry) -> int:
    """No less than what the entry takes when packed."""
    size = 40 + len(entry[0]) + 5 * len(entry[4]) + 4 * len(entry[5])
    if entry[6] is not None:
        size += len(codec.pack(entry[6]))
    return size
