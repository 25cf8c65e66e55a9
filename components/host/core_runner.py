"""Runs a core: collects what arrived, feeds it once per wake-up, journals it, lets outcomes act.

The order is the promise: the journal entry of a wake-up is published before its outcomes, on the
same connection, so history never shows an effect without its cause (unless JetStream lost the
cause, which replay then names). All inputs of a wake-up share one reading of the clock.
"""

import asyncio
from collections.abc import Callable

from bus import codec, subjects
from bus.bus import M, Received
from components.domain.outcomes import Answer, Ask, Core, Count, Outcome, Record, Send
from components.host.host import Host
from components.host.journal import (
    EventRef,
    Input,
    Resumed,
    Tick,
    is_kept,
    pack_inputs,
    pack_outcomes,
)
from components.host.settings import Settings
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.message import Message

#: Inputs that may wait for one wake-up. A loop turn brings at most what the socket held; beyond
#: this the newest is dropped and counted, and repaired by its sender like any lost message.
INPUTS_MAX = 50_000


class CoreRunner:
    """One core in one process.

    Steps and counts are recorded here; ``perform`` does what the other outcomes say, and must not
    block.
    """

    def __init__(
        self,
        host: Host,
        core: Core,
        perform: Callable[[Send | Ask | Answer], None],
        settings: Settings,
        *,
        tick_s: float,
        snapshot_s: float,
    ) -> None:
        self._host = host
        self._core = core
        self._perform = perform
        self._settings_json = settings.model_dump_json()
        self._settings_hash = codec.digest(self._settings_json).hex()
        self._tick_s = tick_s
        self._snapshot_s = snapshot_s
        self._pending: list[tuple[Input, Message | None, int]] = []
        self._index = 0
        self._cut_off = False

    def start(self) -> None:
        """Begin to tick and to take snapshots."""
        self._snapshot()
        _ = self._host.tasks.every("core.tick", self._tick_s, self._tick)
        _ = self._host.tasks.every("core.snapshot", self._snapshot_s, self._snapshot)
        self._host.bus.on_reconnect(self._resume)

    def feed(self, received: Received[M]) -> None:
        """Take a message from the bus; events that a stream keeps are journalled as references."""
        message: Message = received.message
        if is_kept(message):
            ref = EventRef(message.schema_id, received.source, received.epoch, received.seq)
            self._add(ref, message, received.seq)
        else:
            self._add(message, message, 0)

    def feed_message(self, message: Message) -> None:
        """Take a message made here (the answer to a question, with its body removed)."""
        self._add(message, message, 0)

    def _tick(self) -> None:
        # While cut off, silence says nothing about peers; the core sleeps until the bus is back.
        if self._host.bus.connected:
            if self._cut_off:
                self._resume()
            self._add(Tick(), None, 0)
        else:
            self._cut_off = True

    def _resume(self) -> None:
        self._cut_off = False
        self._add(Resumed(), None, 0)

    def _add(self, item: Input, message: Message | None, seq: int) -> None:
        if len(self._pending) >= INPUTS_MAX:
            self._host.counters.add("core_inputs_dropped_total", 1)
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._turn)
        self._pending.append((item, message, seq))

    def _turn(self) -> None:
        taken, self._pending = self._pending, []
        now_s = self._host.clock.now_s()
        outcomes: list[Outcome] = []
        try:
            for item, message, seq in taken:
                outcomes += self._step(item, message, seq, now_s)
            self._append([i for i, _, _ in taken], outcomes, now_s)
            self._act(outcomes)
        except Exception as error:  # noqa: BLE001  (a bug: stop while the evidence is fresh)
            self._host.fault(error)

    def _act(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Count():
                    self._host.counters.add(outcome.name, outcome.by)
                case Record():
                    self._host.recorder.record(
                        outcome.request_id,
                        outcome.step,
                        outcome.attempt,
                        trace=outcome.trace,
                        detail=outcome.detail,
                    )
                case _:
                    self._perform(outcome)

    def _step(self, item: Input, message: Message | None, seq: int, now_s: float) -> list[Outcome]:
        match item:
            case Tick():
                return self._core.on_tick(now_s)
            case Resumed():
                return self._core.on_resume(now_s)
            case _:
                assert message is not None
                return self._core.on_message(message, now_s, seq)

    def _append(self, inputs: list[Input], outcomes: list[Outcome], now_s: float) -> None:
        self._index += 1
        entry = JournalAppended(
            owner=self._host.instance,
            owner_epoch=self._host.epoch,
            index=self._index,
            now_s=now_s,
            settings_hash=self._settings_hash,
            inputs=pack_inputs(inputs),
            outcomes=pack_outcomes(outcomes),
            at_ms=self._host.clock.wall_ms(),
        )
        self._host.bus.publish(subjects.journal_appended(self._host.instance), entry)

    def _snapshot(self) -> None:
        snapshot = JournalSnapshotted(
            component=self._host.component,
            owner=self._host.instance,
            owner_epoch=self._host.epoch,
            index=self._index,
            now_s=self._host.clock.now_s(),
            settings_hash=self._settings_hash,
            settings=self._settings_json,
            state=codec.pack(self._core.snapshot()),
            at_ms=self._host.clock.wall_ms(),
        )
        self._host.bus.publish(subjects.journal_snapshotted(self._host.instance), snapshot)
