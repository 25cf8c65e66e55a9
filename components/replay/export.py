"""Which part of the past belongs to an incident: what happened, and what it began from.

A core can be run again from a snapshot only, and refers to what engines had reported. So each
stream is taken from the last snapshot of every core before the first instant, with the last word of
every engine before that.
"""

from collections.abc import AsyncIterator
from pathlib import Path

from bus import subjects
from bus.history import Stored
from bus.subjects import ANY
from components.replay.bundle import BundleWriter, Manifest
from components.replay.instant import REFERENCES_MS
from components.replay.past import (
    KEPT,
    Past,
    everything_of,
    place_of,
    read_between,
    time_of,
)


async def export(past: Past, path: Path, *, from_ms: int, to_ms: int, now_ms: int) -> Manifest:
    """Write a bundle; raises ``BadBundle`` when it would be too large to be opened."""
    begin_ms = await _beginning(past, from_ms)
    with BundleWriter(path, made_ms=now_ms, from_ms=from_ms, to_ms=to_ms) as writer:
        for stream in KEPT:
            await writer.add(stream, _part(past, stream, begin_ms, to_ms))
    return writer.manifest


async def _beginning(past: Past, from_ms: int) -> int:
    """When the oldest of the snapshots was taken from which the cores at ``from_ms`` start."""
    last_seq = await place_of(past, "JOURNAL", from_ms)
    pattern = subjects.journal_snapshotted(ANY)
    snapshots = await past.last_of_each("JOURNAL", pattern, last_seq) if last_seq > 0 else []
    # A core that left long ago has an old last snapshot, which would drag everything along.
    recent = [at for s in snapshots if (at := time_of(s)) >= from_ms - 12 * REFERENCES_MS]
    return min([from_ms, *recent])


async def _part(past: Past, stream: str, begin_ms: int, to_ms: int) -> AsyncIterator[Stored]:
    last_seq = await place_of(past, stream, to_ms)
    slack_ms = REFERENCES_MS if stream == "ENGINE_STATE" else 1
    before = await place_of(past, stream, begin_ms - slack_ms)
    if stream in {"FLEET", "ENGINE_STATE"} and before > 0:
        for stored in await past.last_of_each(stream, everything_of(stream), before):
            yield stored
    async for stored in read_between(past, stream, before + 1, last_seq):
        yield stored
