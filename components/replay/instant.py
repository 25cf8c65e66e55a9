"""The fleet as it was at an instant: who lived, what engines had said, what waited, what ran.

Cores are not guessed at: the scheduler's own code is started from its last snapshot before the
instant and given what its journal holds from there on.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from bus import codec, subjects
from bus.history import Stored
from bus.subjects import ANY
from components.domain.outcomes import Core
from components.host.journal import EventRef
from components.replay.check import CORES, Resolve, apply
from components.replay.past import (
    KEPT,
    Past,
    everything_of,
    opened,
    place_of,
    read_between,
)
from components.scheduler.core import SchedulerCore
from schemas.engine import EngineLoadReported, EngineStateReceived, EngineStatesReceived
from schemas.fleet import EngineEntry, FleetExpired, FleetJoined, FleetLeft, FleetRegistered
from schemas.journal import JournalAppended, JournalSnapshotted
from schemas.message import Message
from schemas.past import CoreThen, PlacedThen, ProcessThen, ShowInstantReply, WaitingThen

#: As the registry judges the present.
STALE_MS: Final = 2_000
FORGOTTEN_MS: Final = 300_000
#: A snapshot refers to engine reports that were written shortly before it.
REFERENCES_MS: Final = 5_000


@dataclass(slots=True)
class FleetThen:
    """Who had come and not left. Pure: the last record of each subject in."""

    joined: dict[str, FleetJoined] = field(default_factory=dict)
    joined_ms: dict[str, int] = field(default_factory=dict)
    registered: dict[str, FleetRegistered] = field(default_factory=dict)

    def take(self, records: Iterable[tuple[Message, int]]) -> None:
        """Records with their time, oldest first."""
        for message, time_ms in records:
            match message:
                case FleetJoined():
                    self.joined[message.instance] = message
                    self.joined_ms[message.instance] = message.at_ms or time_ms
                case FleetLeft():
                    known = self.joined.get(message.instance)
                    if known and known.process_epoch <= message.process_epoch:
                        del self.joined[message.instance]
                case FleetRegistered():
                    self.registered[message.instance] = message
                case FleetExpired():
                    self.registered.pop(message.instance, None)
                case _:
                    pass

    def processes(self) -> tuple[ProcessThen, ...]:
        """In order of name."""
        return tuple(
            ProcessThen(
                component=j.component,
                instance=name,
                process_epoch=j.process_epoch,
                host=j.host,
                joined_ms=self.joined_ms[name],
            )
            for name, j in sorted(self.joined.items())
        )


def engines_then(records: Iterable[tuple[Message, int]], at_ms: int) -> tuple[EngineEntry, ...]:
    """What each engine had said last, and how old that was. Pure."""
    loads: dict[str, tuple[EngineLoadReported, int]] = {}
    states: dict[str, tuple[EngineStateReceived, int]] = {}
    for message, time_ms in records:
        match message:
            case EngineLoadReported():
                loads[message.engine] = (message, message.at_ms or time_ms)
            case EngineStatesReceived(states=[*_, last]):
                states[message.engine_id] = (last, last.received_ms)
            case _:
                pass
    entries = []
    for name in sorted(loads.keys() | states.keys()):
        load, state = loads.get(name), states.get(name)
        newest_ms = max(said[1] for said in (load, state) if said)
        age_ms = max(0, at_ms - newest_ms)
        if age_ms <= FORGOTTEN_MS:
            entry = EngineEntry(
                engine=name,
                age_ms=age_ms,
                stale=age_ms > STALE_MS,
                load=load[0] if load else None,
                state=state[0] if state else None,
            )
            entries.append(entry)
    return tuple(entries)


async def instant(past: Past, at_ms: int) -> ShowInstantReply:
    """The fleet at ``at_ms``; raises ``StreamUnavailable``."""
    read = {stream: await place_of(past, stream, at_ms) for stream in KEPT}
    fleet = FleetThen()
    fleet.take(_messages(await _last(past, "FLEET", everything_of("FLEET"), read)))
    said = _messages(await _last(past, "ENGINE_STATE", everything_of("ENGINE_STATE"), read))
    living = {name: j.process_epoch for name, j in fleet.joined.items()}
    cores, notes = await _cores(past, at_ms, read, living)
    return ShowInstantReply(
        at_ms=at_ms,
        processes=fleet.processes(),
        engines=engines_then(said, at_ms),
        registered=tuple(fleet.registered[name] for name in sorted(fleet.registered)),
        cores=tuple(then for then, _, _ in cores),
        waiting=tuple(w for _, core, now_s in cores for w in _waiting(core, now_s)),
        placed=tuple(p for _, core, _ in cores for p in _placed(core)),
        read=read,
        notes=(*_beginnings(read), *notes),
    )


def _beginnings(read: dict[str, int]) -> list[str]:
    return [f"{stream} holds nothing from so long ago" for stream in KEPT if read[stream] <= 0]


async def _last(past: Past, stream: str, subject: str, read: dict[str, int]) -> list[Stored]:
    return await past.last_of_each(stream, subject, read[stream]) if read[stream] > 0 else []


def _messages(stored: Iterable[Stored]) -> list[tuple[Message, int]]:
    found = ((opened(s), s.time_ms) for s in stored)
    return [(decoded.message, time_ms) for decoded, time_ms in found if decoded is not None]


# Cores.

Rebuilt = tuple[CoreThen, Core, float]


async def _cores(
    past: Past, at_ms: int, read: dict[str, int], living: dict[str, int]
) -> tuple[list[Rebuilt], list[str]]:
    """Every core that lived, as it stood after its last entry before the instant."""
    pattern = subjects.journal_snapshotted(ANY)
    rebuilt: list[Rebuilt] = []
    notes: list[str] = []
    for stored in await _last(past, "JOURNAL", pattern, read):
        decoded = opened(stored)
        if decoded is None or not isinstance(start := decoded.message, JournalSnapshotted):
            continue
        if living.get(start.owner, start.owner_epoch) != start.owner_epoch:
            continue  # an earlier life
        if start.owner not in living:
            notes.append(f"{start.owner} had left: its core is not shown")
            continue
        resolve = await _references(past, start.at_ms, read["ENGINE_STATE"])
        entries = await _entries(past, start, stored.seq, read["JOURNAL"])
        rebuilt.append(_rebuild(start, entries, resolve, at_ms))
    return rebuilt, notes


async def _entries(
    past: Past, start: JournalSnapshotted, seq: int, last_seq: int
) -> list[JournalAppended]:
    subject = subjects.journal_appended(start.owner)
    entries = []
    async for stored in read_between(past, "JOURNAL", seq + 1, last_seq, subject):
        decoded = opened(stored)
        message = decoded.message if decoded else None
        if isinstance(message, JournalAppended) and message.owner_epoch == start.owner_epoch:
            entries.append(message)
    return entries


async def _references(past: Past, snapshot_ms: int, last_seq: int) -> Resolve:
    first_seq = await place_of(past, "ENGINE_STATE", snapshot_ms - REFERENCES_MS) + 1
    events: dict[EventRef, Message] = {}
    async for stored in read_between(past, "ENGINE_STATE", first_seq, last_seq):
        decoded = opened(stored)
        if decoded is not None:
            message = decoded.message
            ref = EventRef(message.schema_id, decoded.source, decoded.epoch, decoded.seq)
            events[ref] = message
    return events.get


def _rebuild(
    start: JournalSnapshotted, entries: list[JournalAppended], resolve: Resolve, at_ms: int
) -> Rebuilt:
    core = CORES[start.component](start.owner, start.settings)
    core.restore(codec.unpack(start.state))
    index, now_s, said_ms, whole = start.index, start.now_s, start.at_ms, True
    for entry in entries:
        if entry.index <= start.index:
            continue
        whole = whole and entry.index == index + 1
        index, now_s, said_ms = entry.index, entry.now_s, entry.at_ms or said_ms
        whole = apply(core, entry, resolve) and whole
    age_ms = max(0, at_ms - said_ms)
    then = CoreThen(
        component=start.component,
        instance=start.owner,
        process_epoch=start.owner_epoch,
        entry=index,
        whole=whole,
        age_ms=age_ms,
    )
    return then, core, now_s + age_ms / 1000


def _waiting(core: Core, now_s: float) -> list[WaitingThen]:
    if not isinstance(core, SchedulerCore):
        return []
    return [
        WaitingThen(
            request_id=request_id,
            tenant=(entry := core.requests[request_id]).card.tenant,
            attempt=entry.card.attempt,
            prompt_tokens=entry.card.prompt_tokens,
            waited_ms=max(0, round((now_s - entry.queued_s) * 1000)),
        )
        for shard in core.shards.values()
        for request_id in shard.queue
    ]


def _placed(core: Core) -> list[PlacedThen]:
    if not isinstance(core, SchedulerCore):
        return []
    return [
        PlacedThen(
            request_id=request_id,
            tenant=entry.card.tenant,
            attempt=entry.plan.attempt,
            worker=entry.plan.worker,
            prefill_worker=entry.plan.prefill_worker,
        )
        for request_id, entry in core.requests.items()
        if entry.plan is not None
    ]
