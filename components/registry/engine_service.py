"""Keeps engines as records beside what is heard of them, and answers for both.

Nothing here is on a request's path, and nothing waits for JetStream but the writing itself: once a
second what changed is written, one engine after the other.
"""

from typing import Final

from pydantic import ValidationError

from bus import subjects
from bus.bus import Received
from bus.errors import BusError, RecordChanged, RecordRefused, StreamUnavailable
from bus.records import Records
from bus.subjects import ANY
from components.host.host import Host
from components.registry.engine_records import EngineRecords
from components.registry.engines import EngineTable
from components.registry.looks import Looks
from components.registry.nodes import NodeRefused
from components.registry.questions import Questions
from components.registry.settings import RegistrySettings
from schemas.engine import EngineLoadReported
from schemas.engines import (
    DescribeEngine,
    DescribeEngineReply,
    EngineAbout,
    EngineChanged,
    EngineRecord,
    ForgetEngine,
    ForgetEngineReply,
    ListEngines,
    ListEnginesReply,
    ShowEngine,
    ShowEngineReply,
)
from schemas.fleet import FleetLeft, HeartbeatSent

#: Changes of one engine within this time are one change.
WRITE_S: Final = 1.0
WRITES_MAX: Final = 256
#: After a write that failed because the store is away.
STORE_AWAY_S: Final = 5.0
#: Workers that are asked at a time what their engines are, and how long each may take.
ASKS_MAX: Final = 16
ANSWER_S: Final = 2.0
#: How often records are looked through for old ones.
AGED_S: Final = 60.0


class EngineService:
    """The part of the registry that keeps engines."""

    def __init__(self, host: Host, settings: RegistrySettings, records: Records) -> None:
        self._host = host
        self._table = EngineTable(
            settings.engines_max, settings.engine_return_s, settings.engine_record_days
        )
        self._records = EngineRecords(host, records, self._table)
        self._looks = Looks(
            host, "the records of engines", self._records.read_all, self._records.read
        )
        self._asking = 0
        self._store_away_until_s = 0.0
        self._questions = Questions(host)

    async def start(self) -> None:
        questions = self._questions
        await questions.hear(subjects.engine_changed(ANY), EngineChanged, self._on_changed)
        await questions.answer(ShowEngine, self._show)
        await questions.answer(ListEngines, self._list)
        await questions.answer(ForgetEngine, self._on_forget)
        self._host.tasks.every("engines.tick", WRITE_S / 4, self._tick)
        self._host.tasks.every("engines.write", WRITE_S, self.write)
        self._host.tasks.every("engines.age", AGED_S, self._forget_old)
        self._looks.start()

    async def stop(self) -> None:
        await self._questions.stop()

    def resume(self) -> None:
        """The bus was away: nobody could be heard, and others may have written."""
        self._table.begin_leases(self._host.clock.now_s())
        self._looks.at_all()

    # What is heard.

    def on_heartbeat(self, beat: HeartbeatSent) -> None:
        """Of a process that lives."""
        if beat.component != "worker":
            return
        if not self._table.on_heartbeat(beat, self._host.clock.now_s()):
            self._host.counters.add("engines_unrecorded_total")

    def on_load(self, load: EngineLoadReported) -> None:
        self._table.on_load(load)

    def on_left(self, left: FleetLeft) -> None:
        if left.component == "worker":
            self._table.on_left(left)

    def _on_changed(self, received: Received[EngineChanged]) -> None:
        event = received.message
        self._looks.at(event.engine, None if event.state is None else event.revision)

    # What follows from it.

    def _tick(self) -> None:
        if not self._host.bus.connected:
            return
        now_s = self._host.clock.now_s()
        if self._records.loaded:
            self._table.on_tick(now_s)
        for name, epoch in self._table.to_ask(now_s, ASKS_MAX - self._asking):
            self._asking += 1
            _ = self._host.tasks.spawn("engines.ask", self._ask(name, epoch))
        self._host.counters["engine_records"] = len(self._table)

    async def _ask(self, name: str, epoch: int) -> None:
        """A worker that does not answer, as one of an earlier version, is asked again later."""
        subject = subjects.describe_engine(name)
        try:
            reply = await self._host.bus.ask(
                subject, DescribeEngine(), DescribeEngineReply, timeout_s=ANSWER_S
            )
            about = EngineAbout.model_validate(reply.about.model_dump())
        except (BusError, ValidationError) as error:
            self._host.counters.add("engines_undescribed_total")
            self._host.log.debug("%s does not say what it is: %s", name, type(error).__name__)
        else:
            self._table.described(name, epoch, about)
        finally:
            self._asking -= 1

    async def write(self) -> None:
        """Write what changed; what cannot be written now is written later."""
        now_s = self._host.clock.now_s()
        if not self._records.loaded or now_s < self._store_away_until_s:
            return
        names = self._table.due(WRITES_MAX)
        for number, name in enumerate(names):
            try:
                written = await self._records.write(name)
            except RecordRefused as error:
                # It would be refused again: the next change of this engine is the next try.
                self._host.counters.add("engine_records_refused_total")
                self._host.log.warning("%s", error)
                continue
            except StreamUnavailable as error:
                self._host.counters.add("engine_records_unwritten_total")
                self._host.log.warning("records of engines are not written: %s", error)
                self._store_away_until_s = self._host.clock.now_s() + STORE_AWAY_S
                for left in names[number:]:
                    self._table.again(left)
                return
            if written is not None:
                self._say(written, written.revision)
        await self._remove_crowded_out()

    async def _remove_crowded_out(self) -> None:
        left = self._table.crowded_out()
        while left:
            record = left.pop()
            try:
                await self._records.remove(record.engine, record.revision)
            except RecordChanged:
                continue  # it is back
            except StreamUnavailable:
                self._table.keep_out(record, *left)
                return
            self._host.counters.add("engine_records_crowded_out_total")
            self._say(record, None)

    async def _forget_old(self) -> None:
        for name in self._table.old(self._host.clock.wall_ms(), self._host.clock.now_s()):
            try:
                await self._forget(name)
            except (NodeRefused, RecordChanged):
                continue  # it is back, or somebody else did it
            except StreamUnavailable:
                return

    # Questions.

    def _show(self, asked: Received[ShowEngine]) -> None:
        try:
            engine = self._table.show(asked.message.engine, self._host.clock.now_s())
            reply = ShowEngineReply(engine=engine)
        except NodeRefused as why:
            reply = ShowEngineReply(refusal=why.reason, detail=str(why))
            if not self._records.loaded:
                reply = ShowEngineReply(refusal="store_away", detail="records are not read yet")
        self._host.bus.respond(asked, reply)

    def _list(self, asked: Received[ListEngines]) -> None:
        engines, more = self._table.page(asked.message, self._host.clock.now_s())
        complete = self._records.loaded
        self._host.bus.respond(
            asked, ListEnginesReply(engines=engines, more=more, complete=complete)
        )

    def _on_forget(self, asked: Received[ForgetEngine]) -> None:
        _ = self._host.tasks.spawn("engines.forget", self._answer_forget(asked))

    async def _answer_forget(self, asked: Received[ForgetEngine]) -> None:
        try:
            if not self._records.loaded:
                raise NodeRefused("store_away", "records are not read yet: try again")
            await self._forget(asked.message.engine)
            reply = ForgetEngineReply()
        except NodeRefused as why:
            reply = ForgetEngineReply(refusal=why.reason, detail=str(why))
        except RecordChanged:
            detail = "somebody changed it meanwhile: look again"
            reply = ForgetEngineReply(refusal="conflict", detail=detail)
        except StreamUnavailable as error:
            reply = ForgetEngineReply(refusal="store_away", detail=f"{error}: try again")
        self._host.bus.respond(asked, reply)

    async def _forget(self, name: str) -> None:
        record = self._table.to_forget(name)
        await self._records.remove(name, record.revision)
        self._say(record, None)

    def _say(self, record: EngineRecord, revision: int | None) -> None:
        """Tell FLEET and other registries; without a ``revision`` the record was removed."""
        event = EngineChanged(
            engine=record.engine,
            process_epoch=record.process_epoch,
            state=None if revision is None else record.state,
            role=record.role,
            revision=revision or 0,
            at_ms=self._host.clock.wall_ms(),
        )
        self._host.bus.publish(subjects.engine_changed(record.engine), event)
        self._host.log.info("engine %s %s", record.engine, event.state or "forgotten")
