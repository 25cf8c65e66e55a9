"""An incident in one file: what streams held between two instants, with the schemas of it.

A bundle is a zip file:

    manifest.json           form, instants, and per stream how many messages and their hash
    schemas/<id>.json       the JSON Schema of every message
    streams/<NAME>.msgpack  one array [sequence, server's time in ms, subject, payload] per message

It opens without a server (``bundle_reader``): `BundlePast` keeps the promise of
``components.replay.past``.
"""

import bisect
import json
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgpack
import xxhash

from bus.endpoint import matcher
from bus.errors import StreamUnavailable
from bus.history import Stored, StreamState
from schemas.catalogue import BY_SCHEMA_ID

FORM: Final = "switchyard-bundle"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
MIB: Final = 1024 * 1024
#: Unpacked, all streams together: what a laptop holds in memory.
BYTES_MAX: Final = 2048 * MIB
MESSAGES_MAX: Final = 10_000_000


class BadBundle(ValueError):
    """This file is no bundle, or not a whole one; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One stream in a bundle. ``hash``: xxh3-64 of its unpacked bytes."""

    messages: int
    bytes: int
    hash: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself."""

    made_ms: int
    from_ms: int
    to_ms: int
    streams: dict[str, Part]

    def fields(self) -> dict[str, object]:
        """As it stands in a bundle."""
        streams = {
            name: {"messages": part.messages, "bytes": part.bytes, "xxh3_64": part.hash}
            for name, part in self.streams.items()
        }
        return {
            "form": FORM,
            "version": VERSION,
            "made_ms": self.made_ms,
            "from_ms": self.from_ms,
            "to_ms": self.to_ms,
            "streams": streams,
        }


class BundleWriter:
    """Writes streams one after the other; the manifest comes last. Use as a context manager."""

    def __init__(self, path: Path, *, made_ms: int, from_ms: int, to_ms: int) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6)
        self._instants = (made_ms, from_ms, to_ms)
        self._streams: dict[str, Part] = {}
        self._bytes = 0

    def __enter__(self) -> Self:
        for schema_id, message in sorted(BY_SCHEMA_ID.items()):
            schema = json.dumps(message.model_json_schema(), indent=1, sort_keys=True) + "\n"
            self._zip.writestr(f"schemas/{schema_id}.json", schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._zip.writestr(MANIFEST, json.dumps(self.manifest.fields(), indent=1) + "\n")
        self._zip.close()

    @property
    def manifest(self) -> Manifest:
        """What is in it by now."""
        return Manifest(*self._instants, dict(self._streams))

    async def add(self, stream: str, messages: AsyncIterator[Stored]) -> Part:
        """All of ``messages``, in order; raises ``BadBundle`` when they are too many to be read."""
        count, size, hashed = 0, 0, xxhash.xxh3_64()
        with self._zip.open(f"streams/{stream}.msgpack", "w", force_zip64=True) as out:
            async for stored in messages:
                packed: bytes = msgpack.packb(
                    [stored.seq, stored.time_ms, stored.subject, stored.data]
                )
                count, size = count + 1, size + len(packed)
                if self._bytes + size > BYTES_MAX or count > MESSAGES_MAX:
                    raise BadBundle(
                        f"more than {BYTES_MAX // MIB} MiB: choose instants closer together"
                    )
                hashed.update(packed)
                out.write(packed)
        self._bytes += size
        self._streams[stream] = part = Part(count, size, hashed.hexdigest())
        return part


class BundlePast:
    """See ``components.replay.past.Past``."""

    def __init__(self, manifest: Manifest, streams: dict[str, list[Stored]]) -> None:
        self.manifest = manifest
        self._streams = streams
        self._seqs = {name: [s.seq for s in stored] for name, stored in streams.items()}

    async def state(self, stream: str) -> StreamState:
        stored = self._of(stream)
        if not stored:
            return StreamState(0, 0, 0, 0)
        size = self.manifest.streams[stream].bytes
        return StreamState(stored[0].seq, stored[-1].seq, len(stored), size)

    async def read(
        self, stream: str, *, start_seq: int = 1, subject: str | None = None
    ) -> AsyncIterator[Stored]:
        stored = self._of(stream)
        matches = matcher(subject) if subject else None
        for place in range(bisect.bisect_left(self._seqs[stream], start_seq), len(stored)):
            if matches is None or matches(stored[place].subject):
                yield stored[place]

    async def first_from(self, stream: str, seq: int) -> Stored | None:
        stored = self._of(stream)
        place = bisect.bisect_left(self._seqs[stream], seq)
        return stored[place] if place < len(stored) else None

    async def last_of_each(self, stream: str, subject: str, up_to_seq: int) -> list[Stored]:
        stored, matches = self._of(stream), matcher(subject)
        last: dict[str, Stored] = {}
        for place in range(bisect.bisect_right(self._seqs[stream], up_to_seq)):
            if matches(stored[place].subject):
                last[stored[place].subject] = stored[place]
        return sorted(last.values(), key=lambda s: s.seq)

    def _of(self, stream: str) -> list[Stored]:
        found = self._streams.get(stream)
        if found is None:
            raise StreamUnavailable(f"{stream}: it is not in this bundle")
        return found
