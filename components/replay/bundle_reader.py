"""A bundle is opened. What is read from a file is foreign.

Sizes are bounded before anything is unpacked, every part is checked against its hash, and payloads
go through the codec like any message.
"""

import contextlib
import itertools
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgpack
import xxhash

from bus.history import Stored
from components.replay.bundle import (
    BYTES_MAX,
    FORM,
    MANIFEST,
    MESSAGES_MAX,
    MIB,
    VERSION,
    BadBundle,
    BundlePast,
    Manifest,
    Part,
)
from components.replay.past import KEPT

MANIFEST_BYTES_MAX: Final = MIB
MESSAGE_BYTES_MAX: Final = 16 * MIB
#: What `zipfile` raises for bytes that were changed: from its directory, its heads, its contents.
UNREADABLE: Final = (
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def open_bundle(path: Path, *, called: str = "") -> BundlePast:
    """The past that a file holds, every part checked; raises ``BadBundle``, which names it."""
    with _archive(path, called) as archive:
        manifest = _manifest(archive)
        streams = {name: _stream(archive, name, part) for name, part in manifest.streams.items()}
        return BundlePast(manifest, streams)


def read_manifest(path: Path) -> Manifest:
    """What a bundle says of itself, unchecked; raises ``BadBundle``."""
    with _archive(path) as archive:
        return _manifest(archive)


@contextlib.contextmanager
def _archive(path: Path, called: str = "") -> Iterator[zipfile.ZipFile]:
    """Whatever goes wrong with it is a ``BadBundle``."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise BadBundle(f"there is no {called or path}") from None
    except BadBundle as error:
        raise BadBundle(f"{called or path}: {error}") from error
    except UNREADABLE as error:
        raise BadBundle(f"{called or path} is not a whole bundle: {error}") from error


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Raises ``KeyError``, or ``BadBundle`` for what no bundle is packed by."""
    info = archive.getinfo(name)
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BadBundle(f"{name} is packed in a way that bundles are not")
    return info


def _manifest(archive: zipfile.ZipFile) -> Manifest:
    try:
        member = _member(archive, MANIFEST)
        if member.file_size > MANIFEST_BYTES_MAX:
            raise BadBundle("its manifest is too long")
        values = json.loads(archive.read(member))
        if values["form"] != FORM or values["version"] != VERSION:
            raise BadBundle(
                f"it is of form {values['form']} {values['version']}, not {FORM} {VERSION}"
            )
        streams = {
            name: Part(int(part["messages"]), int(part["bytes"]), str(part["xxh3_64"]))
            for name, part in values["streams"].items()
        }
        made_ms, from_ms, to_ms = (int(values[key]) for key in ("made_ms", "from_ms", "to_ms"))
        manifest = Manifest(made_ms, from_ms, to_ms, streams)
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BadBundle(f"it has no manifest that can be read: {error!r}") from error
    if unknown := set(manifest.streams) - set(KEPT):
        raise BadBundle(f"it holds streams that are none of ours: {', '.join(sorted(unknown))}")
    parts = streams.values()
    if any(p.bytes < 0 or not 0 <= p.messages <= MESSAGES_MAX for p in parts):
        raise BadBundle("it says to hold a number of messages that no bundle holds")
    if sum(p.bytes for p in parts) > BYTES_MAX:
        raise BadBundle(f"it says to hold more than {BYTES_MAX // MIB} MiB")
    return manifest


def _stream(archive: zipfile.ZipFile, name: str, part: Part) -> list[Stored]:
    try:
        file = archive.open(_member(archive, f"streams/{name}.msgpack"))
    except KeyError:
        raise BadBundle(f"{name} stands in its manifest and is not there") from None
    hashed = xxhash.xxh3_64()
    with file:
        arrays = _arrays(file, part.bytes, hashed)
        # One more than it says ends it as well: what is foreign must not fill the memory.
        messages = [_stored(fields) for fields in itertools.islice(arrays, part.messages + 1)]
    if (len(messages), hashed.hexdigest()) != (part.messages, part.hash):
        raise BadBundle(f"{name} is not what its manifest says: changed, or cut short")
    if any(a.seq >= b.seq for a, b in itertools.pairwise(messages)):
        raise BadBundle(f"{name} is not in order")
    return messages


def _arrays(file: IO[bytes], bytes_max: int, hashed: xxhash.xxh3_64) -> Iterator[Any]:
    """Unpack while reading, and never more than the manifest said there would be."""
    unpacker = msgpack.Unpacker(max_buffer_size=MESSAGE_BYTES_MAX)
    left = bytes_max
    try:
        while chunk := file.read(MIB):
            left -= len(chunk)
            if left < 0:
                raise BadBundle("a stream is longer than its manifest says")
            hashed.update(chunk)
            unpacker.feed(chunk)
            yield from unpacker
    except (ValueError, msgpack.UnpackException, zipfile.BadZipFile) as error:
        if isinstance(error, BadBundle):
            raise
        raise BadBundle(f"a stream cannot be unpacked: {error}") from error


def _stored(fields: Any) -> Stored:
    match fields:
        case [int(seq), int(time_ms), str(subject), bytes(data)]:
            return Stored(seq, time_ms, subject, data)
        case _:
            raise BadBundle("a message in it is not of the form that it should have")
