"""Engines as records: states follow what is heard, and two registries come to the same."""

import math
from typing import Any

import pytest

from components.registry.engines import ASK_AGAIN_S, DAY_MS, EngineTable
from components.registry.nodes import NodeRefused
from schemas.engine import EngineLoadReported
from schemas.engines import EngineAbout, EngineRecord, ListEngines
from schemas.examples import example
from schemas.fleet import FleetLeft, HeartbeatSent

NAME = "decode-0"
ABOUT = EngineAbout(kind="sim", version="1")


def beat(name: str = NAME, epoch: int = 1, **fields: Any) -> HeartbeatSent:
    return example(HeartbeatSent, instance=name, process_epoch=epoch, **fields)


def left(name: str = NAME, epoch: int = 1, *, lost: bool) -> FleetLeft:
    return example(FleetLeft, instance=name, process_epoch=epoch, lost=lost)


def load(*, accepting: bool, epoch: int = 1) -> EngineLoadReported:
    return example(EngineLoadReported, engine=NAME, engine_epoch=epoch, accepting=accepting)


class Bucket:
    """What stands there, and how often it was written."""

    def __init__(self) -> None:
        self.records: dict[str, EngineRecord] = {}
        self.writes = 0

    def write(self, table: EngineTable, *, wall_ms: int = 1000, now_s: float = 0.0) -> list[str]:
        """What the registry does once a second; names of what it wrote."""
        written = []
        for name in table.due(256):
            for contested in (False, True):
                wanted = table.wanted(name, wall_ms, contested=contested)
                if wanted is None:
                    break
                there = self.records.get(name)
                if wanted.revision == (there.revision if there else 0):
                    self.writes += 1
                    stored = wanted.model_copy(update={"revision": self.writes})
                    self.records[name] = stored
                    table.stored(stored, now_s)
                    written.append(name)
                    break
                assert there is not None
                table.stored(there, now_s)
        return written

    def state(self, name: str = NAME) -> str:
        return self.records[name].state


def heard(table: EngineTable, now_s: float = 0.0, **fields: Any) -> None:
    assert table.on_heartbeat(beat(**fields), now_s)


def missing(table: EngineTable, now_s: float = 0.0) -> list[str]:
    engines, _ = table.page(ListEngines(missing=True), now_s)
    return [engine.record.engine for engine in engines]


def test_a_new_engine_is_written_as_it_says_and_then_only_when_something_changes():
    table, bucket = EngineTable(), Bucket()
    heard(table, state="starting")
    assert bucket.write(table) == [NAME]
    record = bucket.records[NAME]
    said = beat()
    assert (record.state, record.process_epoch, record.created_ms) == ("STARTING", 1, 1000)
    assert (record.role, record.model, record.host) == (said.role, said.model, said.host)
    heard(table, state="ready")
    assert bucket.write(table, wall_ms=2000) == [NAME]
    assert (bucket.state(), bucket.records[NAME].created_ms) == ("READY", 1000)
    assert bucket.records[NAME].updated_ms == 2000
    for now_s in range(100):
        heard(table, now_s=float(now_s), state="ready", watermark=now_s, running=now_s)
        assert bucket.write(table, wall_ms=3000) == []


def test_changes_between_two_writes_are_one_write():
    table, bucket = EngineTable(), Bucket()
    for state in ("starting", "ready", "draining", "ready"):
        heard(table, state=state)
    assert bucket.write(table) == [NAME]
    assert (bucket.state(), bucket.writes) == ("READY", 1)


@pytest.mark.parametrize(
    ("state", "recorded"),
    [
        ("starting", "STARTING"),
        ("ready", "READY"),
        ("degraded", "READY"),
        ("draining", "DRAINING"),
    ],
)
def test_the_state_is_what_the_process_says(state: str, recorded: str):
    table, bucket = EngineTable(), Bucket()
    heard(table, state=state)
    bucket.write(table)
    assert bucket.state() == recorded


def test_an_engine_that_takes_nothing_new_is_draining_until_it_does_again():
    table, bucket = EngineTable(), Bucket()
    heard(table)
    states = []
    for accepting in (False, True):
        table.on_load(load(accepting=accepting))
        bucket.write(table)
        states.append(bucket.state())
    table.on_load(load(accepting=False, epoch=0))
    bucket.write(table)
    assert [*states, bucket.state()] == ["DRAINING", "READY", "READY"]


def test_silence_is_an_error_a_goodbye_a_stop_and_a_word_brings_it_back():
    table, bucket = EngineTable(), Bucket()
    heard(table)
    bucket.write(table)
    states = []
    for lost in (True, False):
        table.on_left(left(lost=lost))
        bucket.write(table)
        states.append((bucket.state(), missing(table)))
        heard(table)
        bucket.write(table)
        states.append((bucket.state(), missing(table)))
    assert states == [("ERROR", [NAME]), ("READY", []), ("STOPPED", []), ("READY", [])]


def test_what_an_old_life_says_changes_nothing():
    table, bucket = EngineTable(), Bucket()
    heard(table, epoch=2)
    bucket.write(table)
    heard(table, epoch=1, state="draining")
    table.on_left(left(epoch=1, lost=True))
    assert bucket.write(table) == []
    assert bucket.state() == "READY"


def test_after_a_restart_of_the_registry_what_should_be_there_is_missing_and_not_forgotten():
    table, bucket = EngineTable(), Bucket()
    heard(table)
    heard(table, name="decode-1")
    heard(table, name="decode-2")
    table.on_left(left("decode-2", lost=False))
    bucket.write(table)
    after = EngineTable(return_s=30.0)
    for record in bucket.records.values():
        after.stored(record, 100.0)
    heard(after, now_s=101.0)
    assert missing(after, 101.0) == ["decode-1"]
    shown = after.show("decode-1", 101.0)
    assert (shown.heard, shown.silent_ms, shown.record.state) == (False, None, "READY")
    after.on_tick(130.0)
    assert bucket.write(after) == []
    after.on_tick(130.1)
    assert bucket.write(after) == ["decode-1"]
    assert (bucket.state(), bucket.state("decode-1"), bucket.state("decode-2")) == (
        "READY",
        "ERROR",
        "STOPPED",
    )
    assert missing(after, 131.0) == ["decode-1"]


def test_nobody_is_missing_sooner_because_we_could_not_hear():
    table = EngineTable(return_s=30.0)
    table.stored(example_record(), 0.0)
    table.begin_leases(29.0)
    table.on_tick(58.0)
    assert table.due(10) == []
    table.on_tick(59.1)
    assert table.due(10) == [NAME]


def example_record(**fields: Any) -> EngineRecord:
    values = {"engine": NAME, "process_epoch": 1, "state": "READY", "role": "decode"}
    return EngineRecord.model_validate({**values, "model": "m", "revision": 1, **fields})


def test_two_registries_that_hear_the_same_write_once_and_come_to_rest():
    bucket, tables = Bucket(), (EngineTable(), EngineTable())

    def both(wall_ms: int) -> None:
        for table in tables:
            bucket.write(table, wall_ms=wall_ms)
        for table in tables:  # each hears what the other wrote
            for record in bucket.records.values():
                table.stored(record, 0.0)

    for state in ("starting", "ready"):
        for table in tables:
            heard(table, state=state)
        both(1)
    for table in tables:
        table.on_left(left(lost=True))
    both(2)
    assert (bucket.writes, bucket.state()) == (3, "ERROR")
    for wall_ms in range(3, 20):
        both(wall_ms)
    assert bucket.writes == 3


def test_who_hears_an_engine_puts_right_what_a_deaf_one_wrote_once():
    bucket, hears, deaf = Bucket(), EngineTable(), EngineTable()
    for table in (hears, deaf):
        heard(table)
        bucket.write(table)
        deaf.stored(bucket.records[NAME], 0.0)
    assert bucket.writes == 1
    deaf.on_left(left(lost=True))
    assert bucket.write(deaf) == [NAME]
    assert bucket.state() == "ERROR"
    for _ in range(10):
        hears.stored(bucket.records[NAME], 0.0)
        bucket.write(hears)
        deaf.stored(bucket.records[NAME], 0.0)
        bucket.write(deaf)
    assert (bucket.state(), bucket.writes) == ("READY", 3)


def test_silence_says_nothing_against_what_was_written_meanwhile_and_a_goodbye_stands():
    bucket, one, other = Bucket(), EngineTable(), EngineTable()
    for table in (one, other):
        heard(table)
    bucket.write(one)
    # The other has not heard of the record, so its write is contested.
    other.on_left(left(lost=True))
    assert bucket.write(other) == []
    one.on_left(left(lost=False))
    bucket.write(one)
    other.stored(bucket.records[NAME], 0.0)
    other.again(NAME)
    assert bucket.write(other) == []
    assert bucket.state() == "STOPPED"


def test_a_later_life_is_right_whoever_wrote_last():
    bucket, old, new = Bucket(), EngineTable(), EngineTable()
    heard(old, epoch=1)
    heard(new, epoch=2, role="prefill")
    bucket.write(new)
    assert bucket.write(old) == []
    old.again(NAME)
    assert bucket.write(old) == []
    record = bucket.records[NAME]
    assert (record.process_epoch, record.role) == (2, "prefill")
    assert old.show(NAME, 0.0).record == record


def test_what_an_engine_is_is_asked_once_per_life_and_kept_until_it_says_otherwise():
    table, bucket = EngineTable(), Bucket()
    heard(table, state="starting")
    assert table.to_ask(0.0, 16) == []
    heard(table, state="ready")
    assert table.to_ask(0.0, 16) == [(NAME, 1)]
    assert table.to_ask(ASK_AGAIN_S - 0.1, 16) == []
    assert table.to_ask(ASK_AGAIN_S, 16) == [(NAME, 1)]
    table.described(NAME, 0, EngineAbout(kind="other"))
    table.described(NAME, 1, ABOUT)
    bucket.write(table)
    assert bucket.records[NAME].about == ABOUT
    assert table.to_ask(math.inf, 16) == []
    after = EngineTable()
    after.stored(bucket.records[NAME], 0.0)
    heard(after)
    assert after.to_ask(0.0, 16) == []
    heard(after, epoch=2)
    bucket.write(after)
    assert bucket.records[NAME].about == ABOUT
    assert after.to_ask(0.0, 16) == [(NAME, 2)]


def test_no_more_are_asked_at_a_time_than_may_be():
    table = EngineTable()
    for number in range(40):
        heard(table, name=f"decode-{number:02}")
    assert [len(table.to_ask(0.0, 16)) for _ in range(4)] == [16, 16, 8, 0]


def test_a_record_that_was_removed_is_written_again_while_its_engine_is_heard():
    table, bucket = EngineTable(), Bucket()
    heard(table)
    bucket.write(table)
    with pytest.raises(NodeRefused, match="stop it first"):
        table.to_forget(NAME)
    del bucket.records[NAME]
    table.gone(NAME)
    assert bucket.write(table) == [NAME]
    table.on_left(left(lost=True))
    assert table.to_forget(NAME).engine == NAME
    table.gone(NAME)
    assert (len(table), bucket.write(table)) == (0, [])
    with pytest.raises(NodeRefused):
        table.to_forget(NAME)


def test_old_records_go_unless_their_engine_is_heard():
    table, bucket = EngineTable(record_days=30.0, return_s=30.0), Bucket()
    heard(table)
    heard(table, name="decode-1")
    table.on_left(left("decode-1", lost=True))
    bucket.write(table, wall_ms=0)
    assert table.old(30 * DAY_MS, 31.0) == []
    assert table.old(30 * DAY_MS + 1, 30.0) == []
    assert table.old(30 * DAY_MS + 1, 31.0) == ["decode-1"]


def test_an_engine_that_was_well_for_long_is_in_error_before_its_record_goes():
    """A record says when something changed, not when its engine was last heard."""
    table, bucket = EngineTable(record_days=30.0, return_s=30.0), Bucket()
    table.stored(example_record(), 0.0)
    bucket.records[NAME] = example_record()
    bucket.writes = 1
    table.on_tick(31.0)
    assert table.old(40 * DAY_MS, 31.0) == [], "it is to be written first"
    assert bucket.write(table, wall_ms=40 * DAY_MS) == [NAME]
    assert (bucket.state(), table.old(69 * DAY_MS, 32.0)) == ("ERROR", [])
    assert table.old(71 * DAY_MS, 32.0) == [NAME]


def test_an_engine_that_was_lost_just_now_is_not_old():
    table = EngineTable(record_days=30.0, return_s=0.0)
    table.stored(example_record(), 0.0)
    heard(table)
    table.on_left(left(lost=True))
    assert table.due(10) == [NAME]  # being written
    assert table.old(40 * DAY_MS, 100.0) == []


def test_what_is_due_is_not_old():
    table = EngineTable(record_days=30.0, return_s=0.0)
    table.stored(example_record(state="ERROR"), 0.0)
    assert table.old(40 * DAY_MS, 100.0) == [NAME]
    heard(table)
    table.on_left(left(lost=False))
    assert table.old(40 * DAY_MS, 100.0) == []


@pytest.mark.parametrize("state", ["READY", "ERROR", "STOPPED"])
def test_an_engine_that_comes_back_under_a_lower_epoch_is_what_is_heard(state: str):
    """Its clock was set back, or it runs on another host; the registry began anew meanwhile."""
    table, bucket = EngineTable(return_s=30.0), Bucket()
    bucket.records[NAME] = example_record(process_epoch=2000, state=state)
    bucket.writes = 1
    table.stored(bucket.records[NAME], 0.0)
    for second in range(1, 100):
        heard(table, epoch=1000, now_s=float(second))
        table.on_tick(second + 0.5)
        bucket.write(table, now_s=second + 0.5)
        assert missing(table) == []
    assert (bucket.state(), bucket.records[NAME].process_epoch) == ("READY", 1000)
    assert bucket.writes == 2


def test_a_lower_epoch_is_taken_once_the_known_life_is_lost_and_not_sooner():
    table, bucket = EngineTable(), Bucket()
    heard(table, epoch=2000)
    heard(table, epoch=1000)
    assert table.show(NAME, 0.0).record.process_epoch == 2000
    bucket.write(table)
    table.on_left(left(epoch=2000, lost=True))
    bucket.write(table)
    heard(table, epoch=1000)
    table.on_tick(0.5)
    bucket.write(table)
    shown = table.show(NAME, 0.0)
    assert (shown.heard, shown.missing, shown.record.process_epoch) == (True, False, 1000)
    assert bucket.records[NAME].process_epoch == 1000


def test_two_registries_agree_on_a_lower_epoch_and_a_deaf_one_does_not_fight():
    bucket, one, deaf = Bucket(), EngineTable(), EngineTable()
    for table in (one, deaf):
        heard(table, epoch=2000)
        table.on_left(left(epoch=2000, lost=True))
        bucket.write(table)
        table.on_tick(0.0)
    heard(one, epoch=1000)
    for second in range(100):
        heard(one, epoch=1000, now_s=float(second))
        for table in (one, deaf):
            table.on_tick(float(second))
            bucket.write(table, now_s=float(second))
            for other in (one, deaf):
                other.stored(bucket.records[NAME], float(second))
    assert (bucket.state(), bucket.records[NAME].process_epoch) == ("READY", 1000)
    assert bucket.writes == 2


def test_the_table_is_bounded_and_a_new_engine_beyond_has_no_record():
    table = EngineTable(engines_max=1)
    heard(table)
    assert not table.on_heartbeat(beat("decode-1"), 0.0)
    assert not EngineTable().on_heartbeat(beat("x" * 257), 0.0)
    assert len(table) == 1


def test_who_ended_first_makes_room_for_one_that_is_heard():
    table, bucket = EngineTable(engines_max=3), Bucket()
    for number in range(3):
        heard(table, name=f"decode-{number}")
    for wall_ms, number in enumerate((1, 0)):
        table.on_left(left(f"decode-{number}", lost=False))
        bucket.write(table, wall_ms=wall_ms)
    heard(table, name="new-0")
    assert [record.engine for record in table.crowded_out()] == ["decode-1"]
    assert table.crowded_out() == []
    heard(table, name="new-1")
    assert not table.on_heartbeat(beat("new-2"), 0.0), "all that are left live"
    engines, _ = table.page(ListEngines(), 0.0)
    assert [engine.record.engine for engine in engines] == ["decode-2", "new-0", "new-1"]
    for name in ("new-0", "new-1"):  # of which nothing is written
        table.on_left(left(name, lost=True))
    table.on_tick(0.0)
    heard(table, name="new-2")
    assert len(table) == 3


def test_what_stands_in_the_bucket_is_bounded_and_the_living_come_first():
    table = EngineTable(engines_max=2)
    assert table.stored(example_record(engine="a", state="STOPPED"), 0.0)
    assert table.stored(example_record(engine="b"), 0.0)
    assert not table.stored(example_record(engine="c", state="STOPPED"), 0.0)
    assert table.stored(example_record(engine="d"), 0.0)
    assert not table.stored(example_record(engine="e"), 0.0)
    assert table.names() == {"b", "d"}
    record = example_record(engine="a", state="STOPPED")
    assert table.stored(record, 0.0), "it is to be removed, not to be taken"
    (out,) = table.crowded_out()
    table.keep_out(out)
    assert [r.engine for r in table.crowded_out()] == ["a"]
    assert table.names() == {"b", "d"}


def test_what_this_life_said_to_another_registry_stays():
    table, bucket = EngineTable(), Bucket()
    heard(table)
    table.described(NAME, 1, EngineAbout(kind="other"))
    table.stored(example_record(about=ABOUT, about_epoch=1), 0.0)
    bucket.records[NAME] = example_record(about=ABOUT, about_epoch=1)
    bucket.write(table)
    assert bucket.records[NAME].about == ABOUT


def test_engines_are_listed_in_pages_as_they_are_heard_written_or_not():
    table = EngineTable()
    for number in range(5):
        heard(table, name=f"decode-{number}")
    first, more = table.page(ListEngines(limit=3), 1.0)
    assert [engine.record.engine for engine in first] == ["decode-0", "decode-1", "decode-2"]
    assert more
    rest, more = table.page(ListEngines(after="decode-2", limit=3), 1.0)
    assert ([engine.record.engine for engine in rest], more) == (["decode-3", "decode-4"], False)
    engine = first[0]
    assert (engine.heard, engine.missing, engine.silent_ms) == (True, False, 1000)
    assert (engine.record.state, engine.record.revision) == ("READY", 0)


def test_an_older_record_never_overwrites_a_newer_one():
    table = EngineTable()
    table.stored(example_record(revision=5), 0.0)
    table.stored(example_record(revision=4, state="ERROR"), 0.0)
    assert table.show(NAME, 0.0).record.revision == table.revision(NAME) == 5
    assert table.revision("nobody") == 0
    assert table.names() == {NAME}
