"""The audit's shell: reads every stream's envelopes, asks processes what they have published.

It has a connection of its own per stream, because each is read at its own pace, and each is judged
on its own. What an earlier life of it found stands in FLEET and is not told twice.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import msgpack

from bus import subjects
from bus.errors import BusError, StreamUnavailable
from bus.history import Gap as StreamGap
from bus.history import History, Stored
from bus.streams import KEPT_IN, ON_DISK
from components.host.host import Host
from components.replay.audit import Audit, Key
from components.replay.findings import Findings
from components.replay.lives import Lives
from components.replay.past import opened
from components.replay.storing import Storing, Verdict
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

TICK_S: Final = 1.0
#: How often processes are asked, and how long they have for an answer.
ASK_S: Final = 2.0
ANSWER_S: Final = 0.5
#: Messages of a stream between which others get their turn; whoever asks about the past gets more.
TURN: Final = 256
GIVE_WAY_S: Final = 0.05
#: The stream of each event that is audited.
_HISTORY: Final = {event: stream for event, stream in KEPT_IN.items() if stream in ON_DISK}


OnGap = Callable[[StreamGap], None]


class Auditor:
    """``make`` gives each stream that is audited a reader of its own; ``busy``: are we asked?"""

    def __init__(
        self, host: Host, make: Callable[[OnGap], History], busy: Callable[[], bool]
    ) -> None:
        self._host = host
        self._busy = busy
        self._readers = {name: make(self.on_gap) for name in ON_DISK}
        self.readers = tuple(self._readers.values())
        self._audit = Audit()
        self._lives = Lives()
        self._storing = Storing()
        #: Streams that are known to store nothing.
        self._silent: set[str] = set()
        self._read: Counter[str] = Counter()
        #: What streams held when somebody last asked, and they answered.
        self._held: dict[str, StreamNow] = {}
        self._state: HistoryState = "ok"
        self._why = ""
        self._findings = Findings(host)

    @property
    def state(self) -> HistoryState:
        return self._state

    def start(self) -> None:
        """Begin to read, to ask and to judge."""
        tasks = self._host.tasks
        self._host.bus.on_reconnect(self._on_reconnect)
        for name, reader in self._readers.items():
            _ = tasks.spawn(f"audit.{name}", self._follow(name, reader))
        _ = tasks.spawn("audit.ask", self._ask())
        _ = tasks.spawn("audit.judge", self._judge_again())

    def _on_reconnect(self) -> None:
        self._lives.on_trouble(self._host.clock.now_s())

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
                await asyncio.sleep(GIVE_WAY_S if self._busy() else 0)

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
        now_s = self._host.clock.now_s()
        self._storing.on_read(stream, now_s)
        found = envelope(stored.data)
        if found is not None and found[0][0] != HistoryProbed.schema_id:
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
                source, epoch = reply.source, reply.epoch
                self._lives.on_answer(source, epoch, now_s)
                published = reply.message.published
                self._audit.on_published(_HISTORY, source, epoch, published, now_s)

    # What is found.

    async def _judge_again(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._judge()

    async def _judge(self) -> None:
        now_s = self._host.clock.now_s()
        if await self._away():
            for stream in ON_DISK:
                if stream not in self._silent:  # of those it is known that nothing was stored
                    self._audit.forgive(now_s, stream)
            self._lives.on_trouble(now_s)
            self._change("away", "streams cannot be asked")
            return
        verdicts = {stream: await self._verdict(stream, now_s) for stream in ON_DISK}
        silent = {stream for stream, verdict in verdicts.items() if verdict == "silent"}
        unsure = {stream for stream, verdict in verdicts.items() if verdict != "stores"}
        for stream in self._silent - unsure:
            # It stores again: what is on its way is not missing yet.
            self._audit.forgive(now_s, stream)
        self._silent = silent | (self._silent & unsure)
        for gap in self._audit.on_tick(now_s, unsure):
            self._findings.found(gap)
        if self._silent:
            self._lives.on_trouble(now_s)
            missing = sum(map(self._audit.waiting, self._silent))
            names = ", ".join(sorted(self._silent))
            why = f"{names}: {missing} events were published and are in no stream"
            self._change("not_storing", why)
        else:
            for tail in self._lives.on_tick(now_s):
                self._findings.ended(tail)
            self._change("ok", "")
        if "FLEET" not in unsure:
            self._findings.tell()

    async def _away(self) -> bool:
        try:
            await self._readers["FLEET"].state("FLEET")
        except (StreamUnavailable, BusError):
            return True
        return not self._host.bus.connected

    async def _verdict(self, stream: str, now_s: float) -> Verdict:
        """Does it store, as far as a probe can tell?"""
        verdict = self._storing.judge(stream, self._audit.oldest_wait_s(now_s, stream), now_s)
        if verdict == "stores":
            return verdict
        host = self._host
        probe = HistoryProbed(stream=stream, auditor=host.instance, at_ms=host.clock.wall_ms())
        host.bus.publish(subjects.history_probed(stream, host.instance), probe)
        return "unsure" if verdict == "silent" and await self._is_behind(stream) else verdict

    async def _is_behind(self, stream: str) -> bool:
        """Does the stream hold what was not read yet? Then it is we who are slow."""
        try:
            return (await self._readers[stream].state(stream)).last_seq > self._read[stream]
        except StreamUnavailable:
            return False

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

    @property
    def forgotten_total(self) -> int:
        """Lines, holes and lives that found no place in the audit's tables."""
        return self._audit.forgotten_total + self._lives.forgotten_total

    async def show(self, _: ShowHistory) -> ShowHistoryReply:
        """The state, what streams hold (or held when they last answered), and the last gaps."""
        await asyncio.gather(*map(self._look, self._readers))
        streams = tuple(self._held[name] for name in self._readers if name in self._held)
        return ShowHistoryReply(
            state=self._state,
            why=self._why,
            streams=streams,
            waiting=self._audit.waiting(),
            **self._findings.shown(),
        )

    async def _look(self, name: str) -> None:
        """Who asks how the history is must hear it above all when streams are slow to answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                now = await self._readers[name].state(name)
        except (TimeoutError, StreamUnavailable):
            return
        read = self._read[name]
        self._held[name] = StreamNow(name=name, audited_seq=read, **asdict(now))


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
