"""The audit's shell: reads every stream's envelopes, asks processes what they have published.

It has a connection of its own per stream, because each is read at its own pace. What it finds is
published when streams take messages again; what an earlier life of it found stands in FLEET and is
not told twice.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import msgpack

from bus import subjects
from bus.errors import BusError, StreamUnavailable
from bus.history import Gap as StreamGap
from bus.history import History, Stored
from bus.streams import BY_NAME, STREAMS
from bus.subjects import PREFIX
from components.host.host import Host
from components.replay.audit import Audit, Gap, Key
from components.replay.past import opened
from schemas.catalogue import CATALOGUE
from schemas.fleet import ShowComponent, ShowComponentReply
from schemas.history import (
    HistoryGapFound,
    HistoryProbed,
    HistoryState,
    HistoryStateChanged,
    ShowHistory,
    ShowHistoryReply,
    StreamNow,
)

#: What is kept on disk; memory streams are no history.
FILES: Final = tuple(s.name for s in STREAMS if s.storage == "file")
TICK_S: Final = 1.0
#: How often processes are asked, and how long they have for an answer.
ASK_S: Final = 2.0
ANSWER_S: Final = 0.5
#: Something is missing, and nothing at all has arrived for so long: streams do not store. Less
#: than the audit's grace, so that this is known before what is missing is told one by one.
NOT_STORING_S: Final = 3.0
GAPS_SHOWN: Final = 100
#: What was found and could not be told yet; the oldest goes.
UNTOLD_MAX: Final = 4096
TURN: Final = 256


def _streams_of_kinds() -> dict[str, str]:
    """Schema id -> the file stream that keeps it."""
    kept = {}
    for entry in CATALOGUE:
        prefix = f"{PREFIX}.{entry.subject}"
        for name in FILES:
            if any(prefix.startswith(s.removesuffix(">")) for s in BY_NAME[name].subjects):
                kept[entry.message.schema_id] = name
    return kept


KINDS: Final = _streams_of_kinds()


OnGap = Callable[[StreamGap], None]


class Auditor:
    """``make`` gives each stream that is audited a reader of its own."""

    def __init__(self, host: Host, make: Callable[[OnGap], History]) -> None:
        self._host = host
        self._readers = {name: make(self.on_gap) for name in FILES}
        self.readers = tuple(self._readers.values())
        self._audit = Audit()
        self._read: Counter[str] = Counter()
        self._state: HistoryState = "ok"
        self._why = ""
        self._gaps: deque[HistoryGapFound] = deque(maxlen=GAPS_SHOWN)
        self._gaps_total = 0
        self._untold: deque[HistoryGapFound] = deque(maxlen=UNTOLD_MAX)
        self._read_at_s = 0.0

    @property
    def state(self) -> HistoryState:
        return self._state

    def start(self) -> None:
        """Begin to read, to ask and to judge."""
        tasks = self._host.tasks
        for name, reader in self._readers.items():
            _ = tasks.spawn(f"audit.{name}", self._follow(name, reader))
        _ = tasks.spawn("audit.ask", self._ask())
        _ = tasks.spawn("audit.judge", self._judge_again())

    def on_gap(self, gap: StreamGap) -> None:
        """A reader was slower than retention."""
        self._audit.on_unread(gap.stream, self._host.clock.wall_ms())

    async def _follow(self, stream: str, reader: History) -> None:
        start_seq = await self._begin(stream, reader)
        count = 0
        async for stored in reader.follow(stream, start_seq=start_seq):
            self._take(stream, stored)
            count += 1
            if count % TURN == 0:
                await asyncio.sleep(0)

    async def _begin(self, stream: str, reader: History) -> int:
        """The first message that is kept; where it is not the stream's first, from when it is."""
        while True:
            try:
                state = await reader.state(stream)
                if state.first_seq > 1 and (first := await reader.first_from(stream, 1)):
                    self._audit.begins_ms[stream] = first.time_ms
                return max(1, state.first_seq)
            except StreamUnavailable:
                await asyncio.sleep(TICK_S)

    def _take(self, stream: str, stored: Stored) -> None:
        self._read[stream] = stored.seq
        self._read_at_s = now_s = self._host.clock.now_s()
        found = envelope(stored.data)
        if found is not None:
            key, seq = found
            self._audit.on_event(stream, key, seq, now_s)
            if key[0] == HistoryGapFound.schema_id:
                self._recall(stored)

    def _recall(self, stored: Stored) -> None:
        """A gap that an earlier life has told; our own are told by now anyway."""
        decoded = opened(stored)
        if decoded is not None and isinstance(gap := decoded.message, HistoryGapFound):
            key = (gap.event, gap.source, gap.epoch)
            self._audit.on_told(key, gap.first_seq, gap.last_seq)

    async def _ask(self) -> None:
        """What have you published? Of everybody, again and again."""
        while True:
            await asyncio.sleep(ASK_S)
            try:
                replies = await self._host.bus.ask_all(
                    subjects.show_component(subjects.EVERYONE),
                    ShowComponent(),
                    ShowComponentReply,
                    wait_s=ANSWER_S,
                )
            except BusError:
                continue
            now_s = self._host.clock.now_s()
            for reply in replies:
                self._audit.on_published(
                    KINDS, reply.source, reply.epoch, reply.message.published, now_s
                )

    # What is found.

    async def _judge_again(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._judge()

    async def _judge(self) -> None:
        now_s = self._host.clock.now_s()
        try:
            await next(iter(self._readers.values())).state("FLEET")
            away = not self._host.bus.connected
        except (StreamUnavailable, BusError):
            away = True
        if away:
            self._audit.forgive(now_s)
            self._change("away", "streams cannot be asked")
            return
        waited_s = self._audit.oldest_wait_s(now_s)
        silent_s = now_s - self._read_at_s
        if min(waited_s, silent_s) > NOT_STORING_S / 2:
            # Something is missing and nothing comes: is that one loss, or does nothing arrive?
            probe = HistoryProbed(auditor=self._host.instance, at_ms=self._host.clock.wall_ms())
            self._host.bus.publish(subjects.history_probed(self._host.instance), probe)
        if waited_s > NOT_STORING_S / 2 and silent_s > NOT_STORING_S:
            # Nothing arrives at all: what is missing is told when it is known what stays missing.
            self._audit.forgive(now_s - NOT_STORING_S / 2)
            missing = self._audit.waiting()
            self._change("not_storing", f"{missing} events were published and are in no stream")
            return
        for gap in self._audit.on_tick(now_s):
            self._found(gap)
        self._change("ok", "")
        self._tell()

    def _found(self, gap: Gap) -> None:
        message = HistoryGapFound(
            stream=gap.stream,
            source=gap.source,
            epoch=gap.epoch,
            event=gap.event,
            first_seq=gap.first_seq,
            last_seq=gap.last_seq,
            at_ms=self._host.clock.wall_ms(),
            filled=gap.filled,
        )
        missing = gap.last_seq - gap.first_seq + 1
        self._host.counters.add("events_missing_total", -missing if gap.filled else missing)
        self._gaps.append(message)
        self._gaps_total += 1
        self._untold.append(message)
        log = self._host.log
        log.warning("%s: %s of %s", gap.stream, "came late" if gap.filled else "missing", gap)

    def _change(self, state: HistoryState, why: str) -> None:
        self._why = why
        if state == self._state:
            return
        self._state = state
        changed = HistoryStateChanged(
            auditor=self._host.instance, state=state, why=why, at_ms=self._host.clock.wall_ms()
        )
        self._host.log.warning("the history is %s %s", state, why)
        self._host.bus.publish(subjects.history_state_changed(self._host.instance), changed)

    def _tell(self) -> None:
        """Streams take messages again, as far as we know."""
        while self._untold:
            message = self._untold.popleft()
            self._host.bus.publish(subjects.history_gap_found(self._host.instance), message)

    @property
    def forgotten_total(self) -> int:
        """Lines and holes that found no place in the audit's tables."""
        return self._audit.forgotten_total

    async def show(self, _: ShowHistory) -> ShowHistoryReply:
        """The state, what streams hold, and the last gaps."""
        streams = []
        for name, reader in self._readers.items():
            try:
                now = await reader.state(name)
            except StreamUnavailable:
                continue
            streams.append(
                StreamNow(
                    name=name,
                    messages=now.messages,
                    bytes=now.bytes,
                    bytes_max=now.bytes_max,
                    age_max_s=now.age_max_s,
                    first_seq=now.first_seq,
                    last_seq=now.last_seq,
                    audited_seq=self._read[name],
                )
            )
        return ShowHistoryReply(
            state=self._state,
            why=self._why,
            streams=tuple(streams),
            gaps=tuple(self._gaps),
            gaps_total=self._gaps_total,
            waiting=self._audit.waiting(),
        )


def envelope(data: bytes) -> tuple[Key, int] | None:
    """``(kind, source, epoch), seq`` of a stored event, its fields unread; None for others."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) or 1)
    unpacker.feed(data)
    try:
        if unpacker.read_array_header() < 5:
            return None
        kind, _, source, epoch, seq = (unpacker.unpack() for _ in range(5))
    except (ValueError, msgpack.UnpackException):
        return None
    match kind, source, epoch, seq:
        case str(), str(), int(), int():
            return (kind, source, epoch), seq
        case _:
            return None
