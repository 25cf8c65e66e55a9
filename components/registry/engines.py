"""Engines as records: what each was when it was last heard, for when nobody hears it. Pure.

How to think about it: an engine has a *record* (what stands in the bucket) and, once it was heard
here, a *life* (what this registry heard itself). Who is alive is told by the life alone; the record
follows it, is written when it says something else, and never makes anybody look dead or alive.

Two registries at one bucket write the same thing, because they hear the same. Where they do not,
the higher process epoch is right, within one life whoever hears the engine, and a goodbye that was
heard stands against mere silence. So each change is written once, and what one of them missed is
put right once by the other.

An engine may come back under a lower epoch (its clock was set back, or it runs on another host). It
is heard all the same: once the later life ended, or had its time to be heard, the record follows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from components.registry.engine_about import fitting
from components.registry.engine_known import Known, here, is_described, is_news
from components.registry.engine_life import GONE, Life, lost, said_by, written
from components.registry.engine_room import Room
from components.registry.nodes import NodeRefused
from schemas.engine import EngineLoadReported
from schemas.engines import NAME_CHARS_MAX, EngineAbout, EngineRecord, KnownEngine, ListEngines
from schemas.fleet import FleetLeft, HeartbeatSent

#: A worker that could not say what its engine is will be asked again so much later.
ASK_AGAIN_S: Final = 10.0
DAY_MS: Final = 86_400_000


@dataclass(slots=True)
class EngineTable:
    """All engines, at most ``engines_max``; then the one that is gone the longest makes room.

    Where none is gone, a new one is heard and has no record. One that stands in the bucket has
    ``return_s`` to be heard again after a start of the registry; then it is in ERROR. A record of
    an engine in STOPPED or ERROR is kept for ``record_days`` after it came to that.
    """

    engines_max: int = 4096
    return_s: float = 30.0
    record_days: float = 30.0
    _engines: dict[str, Known] = field(default_factory=dict)
    #: Whose record may have to be written, in the order in which that came up.
    _due: dict[str, None] = field(default_factory=dict)
    _room: Room = field(default_factory=Room)

    def __len__(self) -> int:
        return len(self._engines)

    # What is heard.

    def on_heartbeat(self, beat: HeartbeatSent, now_s: float) -> bool:
        """Take a living worker's; False when there is no place for its engine."""
        if beat.role is None or beat.model is None or beat.state == "stopped":
            return True
        if not 0 < len(beat.instance) <= NAME_CHARS_MAX:
            return False
        known = self._known(beat.instance, now_s)
        if known is None:
            return False
        life = known.life
        if life is not None and life.here and beat.process_epoch < life.said.epoch:
            return True  # an old life speaking through a late message
        said = said_by(beat, beat.role, beat.model)
        if life is None or said.epoch != life.said.epoch:
            known.life = Life(said, now_s)
        elif life.here and life.said == said:
            life.heard_s = now_s
            return True
        else:
            life.said, life.heard_s, life.here = said, now_s, True
        self._due[beat.instance] = None
        return True

    def on_load(self, load: EngineLoadReported) -> None:
        """It takes work or, by its operator's wish, nothing new."""
        known = self._engines.get(load.engine)
        life = known.life if known else None
        if life is None or life.said.epoch != load.engine_epoch:
            return
        if life.closed is load.accepting:
            life.closed = not load.accepting
            self._due[load.engine] = None

    def on_left(self, left: FleetLeft) -> None:
        """A goodbye, or silence for too long."""
        known = self._engines.get(left.instance)
        life = known.life if known else None
        if life is not None and life.said.epoch == left.process_epoch:
            life.here = False
            life.said = replace(life.said, state="ERROR" if left.lost else "STOPPED")
            self._due[left.instance] = None

    def on_tick(self, now_s: float) -> None:
        """Whoever stands in the bucket as living had its time to be heard, and was not."""
        self._room.look_again()
        for name, known in self._engines.items():
            record = known.record
            if record is None or not is_news(known):
                continue
            ended, late = record.state in GONE, now_s - known.since_s > self.return_s
            if here(known) and (ended or late):
                known.stands = True
                self._due[name] = None
            elif late and not ended:
                known.life = Life(lost(record), -math.inf, here=False)
                self._due[name] = None

    def begin_leases(self, now_s: float) -> None:
        """Nobody could be heard until now."""
        for known in self._engines.values():
            known.since_s = now_s

    # What it is: asked once per life.

    def to_ask(self, now_s: float, at_most: int) -> list[tuple[str, int]]:
        """Engines that are ready and have not said what they are, with their epochs."""
        found: list[tuple[str, int]] = []
        for name, known in self._engines.items():
            life = known.life
            if len(found) >= at_most:
                break
            if life is None or not life.here or life.about or life.said.state != "READY":
                continue
            if now_s - life.asked_s >= ASK_AGAIN_S and not is_described(known):
                life.asked_s = now_s
                found.append((name, life.said.epoch))
        return found

    def described(self, name: str, epoch: int, about: EngineAbout) -> None:
        """This life of the engine said what it is; what does not fit into a record is left out."""
        known = self._engines.get(name)
        if known is not None and known.life is not None and known.life.said.epoch == epoch:
            known.life.about = fitting(about)
            self._due[name] = None

    # What shall be written.

    def due(self, at_most: int) -> list[str]:
        """Names to call ``wanted`` for, oldest first. They are not due any more."""
        names = list(self._due)[:at_most]
        for name in names:
            del self._due[name]
        return names

    def again(self, name: str) -> None:
        """It could not be written: it is due still."""
        self._due[name] = None

    def wanted(self, name: str, wall_ms: int, *, contested: bool = False) -> EngineRecord | None:
        """What to write where the record has this ``revision``; None: it is right as it is.

        ``contested``: somebody wrote since this was decided. Then silence says nothing against it,
        unless it is the silence of a later life.
        """
        known = self._engines.get(name)
        if known is None or known.life is None:
            return None
        life, record = known.life, known.record
        if record is None:
            return written(name, life, None).model_copy(
                update={"created_ms": wall_ms, "updated_ms": wall_ms}
            )
        if is_news(known) or (
            not life.here
            and record.process_epoch == life.said.epoch
            and (contested or record.state == "STOPPED")
        ):
            return None
        record = written(name, life, record)
        if record == known.record:
            return None
        return record.model_copy(update={"updated_ms": wall_ms})

    def old(self, wall_ms: int, now_s: float) -> list[str]:
        """Whose record was kept long enough: it ended, and had its time to be heard again."""
        oldest_ms = wall_ms - self.record_days * DAY_MS
        return [
            name
            for name, known in self._engines.items()
            if known.record is not None
            and known.record.state in GONE
            and known.record.updated_ms < oldest_ms
            and not here(known)
            and name not in self._due
            and now_s - known.since_s > self.return_s
        ]

    def to_forget(self, name: str) -> EngineRecord:
        """The record to be removed; raises ``NodeRefused``."""
        known = self._engines.get(name)
        if known is None or known.record is None:
            raise NodeRefused("not_found", f"there is no record of an engine {name!r}")
        if here(known):
            raise NodeRefused("conflict", f"{name} is heard: stop it first")
        return known.record

    # What stands in the bucket.

    def stored(self, record: EngineRecord, now_s: float) -> bool:
        """It was read, or just written. An older one than is known changes nothing.

        False when there is no place for it.
        """
        if self._room.was_left(record):
            return True  # it is to be removed
        known = self._known(record.engine, now_s, ended=record.state in GONE)
        if known is None:
            return False
        if known.record is not None and record.revision <= known.record.revision:
            return True
        if known.record is None or record.process_epoch != known.record.process_epoch:
            known.since_s, known.stands = now_s, False
        known.record = record
        if here(known):
            self._due[record.engine] = None  # what was heard may say something else
        return True

    def gone(self, name: str) -> None:
        """There is no record any more; an engine that is heard gets another one."""
        known = self._engines.get(name)
        if known is None:
            return
        known.record = None
        if here(known):
            self._due[name] = None
        else:
            del self._engines[name]
            self._due.pop(name, None)

    def revision(self, name: str) -> int:
        """Of the record as it is known; 0: of none."""
        known = self._engines.get(name)
        return known.record.revision if known and known.record else 0

    def crowded_out(self) -> list[EngineRecord]:
        """Records to be removed, of those who made room. Each is told once."""
        return self._room.left()

    def keep_out(self, *records: EngineRecord) -> None:
        """They could not be removed: they are to be told again."""
        self._room.leave(*records)

    def names(self) -> set[str]:
        """Names of all that have a record, as far as is known."""
        return {name for name, known in self._engines.items() if known.record is not None}

    # What can be asked.

    def show(self, name: str, now_s: float) -> KnownEngine:
        """Raises ``NodeRefused``."""
        known = self._engines.get(name)
        if known is None:
            raise NodeRefused("not_found", f"no engine {name!r} is known")
        return self._shown(name, known, now_s)

    def page(self, asked: ListEngines, now_s: float) -> tuple[tuple[KnownEngine, ...], bool]:
        """A page by the order of names, and whether more follow."""
        names = sorted(name for name in self._engines if name > asked.after)
        shown = self._all_shown(names, now_s, missing=asked.missing)
        found = [engine for _, engine in zip(range(asked.limit + 1), shown, strict=False)]
        return tuple(found[: asked.limit]), len(found) > asked.limit

    def _all_shown(self, names: list[str], now_s: float, *, missing: bool) -> Iterator[KnownEngine]:
        for name in names:
            shown = self._shown(name, self._engines[name], now_s)
            if shown.missing or not missing:
                yield shown

    def _shown(self, name: str, known: Known, now_s: float) -> KnownEngine:
        life, record = known.life, known.record
        if life is not None and not is_news(known):
            # As it was heard, written or not.
            record = self.wanted(name, record.updated_ms if record else 0) or record
        assert record is not None, "an engine has a life here or a record"
        silent_s = math.inf if life is None else now_s - life.heard_s
        return KnownEngine(
            record=record,
            heard=here(known),
            missing=not here(known) and record.state != "STOPPED",
            silent_ms=None if silent_s == math.inf else round(silent_s * 1000),
        )

    # Parts of the above.

    def _known(self, name: str, now_s: float, *, ended: bool = False) -> Known | None:
        """Its entry; for a new one that has not ``ended`` another may have to make room."""
        known = self._engines.get(name)
        if known is not None:
            return known
        if len(self._engines) >= self.engines_max:
            goes = None if ended else self._room.make(self._engines, self._due)
            if goes is None:
                return None
            del self._engines[goes]
            self._due.pop(goes, None)
        self._room.takes(name)
        known = self._engines[name] = Known(now_s)
        return known
