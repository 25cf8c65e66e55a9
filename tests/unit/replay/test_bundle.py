"""A bundle gives back what was put in, or says what is wrong with it."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from bus.errors import StreamUnavailable
from components.replay import bundle
from components.replay.bundle import BadBundle
from components.replay.bundle_reader import open_bundle
from schemas.catalogue import BY_SCHEMA_ID
from tests.support.past import reported, written_bundle


async def test_every_message_comes_back_as_it_was(tmp_path: Path):
    opened, made = open_bundle(await written_bundle(tmp_path / "b.zip")), reported()
    for stream in made.streams:
        assert [s async for s in opened.read(stream)] == made.streams[stream]
        assert (await opened.state(stream)).last_seq == (await made.state(stream)).last_seq
    for seq in (1, 17, 40, 41):
        assert await opened.first_from("ENGINE_STATE", seq) == await made.first_from(
            "ENGINE_STATE", seq
        )
        pattern = "yard.evt.engine.load_reported.*"
        assert await opened.last_of_each("ENGINE_STATE", pattern, seq) == await made.last_of_each(
            "ENGINE_STATE", pattern, seq
        )


async def test_the_schemas_of_all_messages_go_with_it(tmp_path: Path):
    with zipfile.ZipFile(await written_bundle(tmp_path / "b.zip")) as archive:
        schemas = {n for n in archive.namelist() if n.startswith("schemas/")}
    assert schemas == {f"schemas/{schema_id}.json" for schema_id in BY_SCHEMA_ID}


async def test_a_stream_that_is_not_in_it_is_unavailable(tmp_path: Path):
    opened = open_bundle(await written_bundle(tmp_path / "b.zip"))
    with pytest.raises(StreamUnavailable, match="not in this bundle"):
        await opened.state("TOKENS")


def test_a_file_that_is_none_is_told(tmp_path: Path):
    with pytest.raises(BadBundle, match="there is no"):
        open_bundle(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(BadBundle, match="is not a whole bundle"):
        open_bundle(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(BadBundle, match="no manifest"):
        open_bundle(tmp_path / "other.zip")


async def test_a_bundle_cut_short_is_told(tmp_path: Path):
    whole = (await written_bundle(tmp_path / "b.zip")).read_bytes()
    for size in range(0, len(whole) - 1, len(whole) // 23):
        (tmp_path / "cut.zip").write_bytes(whole[:size])
        with pytest.raises(BadBundle):
            open_bundle(tmp_path / "cut.zip")


def changed(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The same bundle with other contents under the same names."""
    out = path.with_name("changed.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out


STATES = "streams/ENGINE_STATE.msgpack"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda n, d: d[:-1] + b"\x00" if n == STATES else d, "not what its manifest says"),
        (lambda n, d: d + d if n == STATES else d, "longer than its manifest says"),
        (lambda n, d: b"\xc1" * len(d) if n == STATES else d, "cannot be unpacked"),
        (lambda n, d: msgpack.packb([1, 2]) if n == STATES else d, "not of the form"),
        (lambda n, d: d.replace(b'"version": 1', b'"version": 2'), "of form switchyard-bundle 2"),
        (lambda n, d: d.replace(b'"messages": 40', b'"messages": 39'), "what its manifest says"),
        (lambda n, d: d.replace(b'"messages": 40', b'"messages": -1'), "that no bundle holds"),
        (lambda n, d: d.replace(b'"FLEET"', b'"OTHER"'), "none of ours: OTHER"),
        (lambda n, d: b"[]" if n == "manifest.json" else d, "no manifest that can be read"),
        (lambda n, d: b" " * 2_000_000 if n == "manifest.json" else d, "manifest is too long"),
    ],
)
async def test_a_bundle_that_was_changed_is_told(
    tmp_path: Path, change: Callable[[str, bytes], bytes], why: str
):
    with pytest.raises(BadBundle, match=why):
        open_bundle(changed(await written_bundle(tmp_path / "b.zip"), change))


async def test_a_bundle_that_says_to_be_huge_is_not_unpacked(tmp_path: Path):
    def swollen(name: str, data: bytes) -> bytes:
        if name != bundle.MANIFEST:
            return data
        values = json.loads(data)
        values["streams"]["JOURNAL"]["bytes"] = bundle.BYTES_MAX + 1
        return json.dumps(values).encode()

    with pytest.raises(BadBundle, match="more than 2048 MiB"):
        open_bundle(changed(await written_bundle(tmp_path / "b.zip"), swollen))


async def test_no_changed_byte_of_what_was_recorded_goes_unnoticed(tmp_path: Path):
    path = await written_bundle(tmp_path / "b.zip")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        packed = archive.getinfo(STATES)
    begin = packed.header_offset + 30 + len(STATES) + 20  # its head, its name, its sizes
    damaged = tmp_path / "damaged.zip"
    # The very last byte only fills up the last bits.
    for place in range(begin, begin + packed.compress_size - 1):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(BadBundle):
            open_bundle(damaged)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_what_is_packed_otherwise_is_refused_unread(tmp_path: Path, packing: int):
    path, other = await written_bundle(tmp_path / "b.zip"), tmp_path / "other.zip"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", packing) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(BadBundle, match="in a way that bundles are not"):
        open_bundle(other)


async def test_too_much_is_not_written_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bundle, "MESSAGES_MAX", 10)
    with pytest.raises(BadBundle, match="choose instants closer together"):
        await written_bundle(tmp_path / "b.zip")
