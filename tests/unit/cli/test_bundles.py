"""What was imported is kept whole under its name, within bounds, or not at all."""

import asyncio
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.cli import bundles, main
from components.cli.bundles import Bundles, CannotKeep
from components.replay.bundle import BadBundle
from components.replay.bundle_reader import open_bundle
from tests.support.past import written_bundle


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return asyncio.run(written_bundle(tmp_path / "incident.zip"))


@pytest.fixture
def library(tmp_path: Path) -> Bundles:
    return Bundles(tmp_path / "data" / "bundles")


def test_a_bundle_is_kept_under_the_name_of_its_file_or_another(library: Bundles, file: Path):
    assert library.keep(file).name == "incident"
    kept = library.keep(file, "friday-14h")
    assert kept.path.read_bytes() == file.read_bytes()
    assert library.find("friday-14h") == kept.path
    assert [(one.name, one.bytes) for one in library.listed()] == [
        ("friday-14h", file.stat().st_size),
        ("incident", file.stat().st_size),
    ]
    assert kept.manifest is not None
    assert (kept.manifest.from_ms, kept.manifest.to_ms) == (1000, 1040)
    assert kept.manifest == open_bundle(file).manifest


def test_it_stays_when_the_file_goes_and_belongs_to_its_owner_alone(library: Bundles, file: Path):
    kept = library.keep(file)
    file.unlink()
    assert open_bundle(kept.path).manifest == kept.manifest
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(library.folder.stat().st_mode) == 0o700


def test_what_is_damaged_is_refused_by_its_own_name_and_nothing_is_kept(
    library: Bundles, file: Path, tmp_path: Path
):
    whole = file.read_bytes()
    for name, data in (("cut.zip", whole[:-40]), ("text.zip", b"hello"), ("empty.zip", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadBundle, match=name):
            library.keep(tmp_path / name)
    with pytest.raises(BadBundle, match="there is no"):
        library.keep(tmp_path / "none.zip")
    assert list(library.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "x" * 65, "ä", "a b", "-rf"])
def test_a_name_is_a_plain_word(library: Bundles, file: Path, name: str):
    with pytest.raises(CannotKeep, match="choose one with --name"):
        library.keep(file, name)
    assert library.find(name) is None
    assert not library.remove(name)


def test_a_name_that_is_taken_is_not_taken_over(library: Bundles, file: Path):
    kept = library.keep(file)
    before = kept.path.read_bytes()
    with pytest.raises(CannotKeep, match=r"choose another --name, or remove one"):
        library.keep(asyncio.run(written_bundle(file.with_name("other.zip"))), "incident")
    assert kept.path.read_bytes() == before


def test_what_does_not_fit_says_what_to_do(
    library: Bundles, file: Path, monkeypatch: pytest.MonkeyPatch
):
    library.keep(file, "a")
    size = file.stat().st_size
    monkeypatch.setattr(bundles, "LIBRARY_BYTES_MAX", 2 * size - 1)
    with pytest.raises(CannotKeep, match=r"MiB are kept: remove one with: switchyard replay"):
        library.keep(file, "b")
    monkeypatch.setattr(bundles, "LIBRARY_BYTES_MAX", 2 * size)
    library.keep(file, "b")
    monkeypatch.setattr(bundles, "LIBRARY_BYTES_MAX", 9 * size)
    monkeypatch.setattr(bundles, "BUNDLES_MAX", 2)
    with pytest.raises(CannotKeep, match="2 bundles are kept already"):
        library.keep(file, "c")
    assert library.remove("a")
    library.keep(file, "c")
    monkeypatch.setattr(bundles, "BYTES_MAX", size - 1)
    library.remove("b")
    with pytest.raises(CannotKeep, match="as no bundle is"):
        library.keep(file, "d")


def test_what_a_killed_import_left_is_no_bundle_and_goes(library: Bundles, file: Path):
    library.folder.mkdir(parents=True)
    (library.folder / ".importing").write_bytes(b"half of it")
    assert library.listed() == []
    library.keep(file)
    assert [path.name for path in library.folder.iterdir()] == ["incident.zip"]


def test_of_many_imports_under_one_name_one_is_kept(library: Bundles, file: Path):
    def keep(_: int) -> bool:
        try:
            Bundles(library.folder).keep(file)
        except CannotKeep:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(keep, range(8))) == 1
    assert [path.name for path in library.folder.iterdir()] == ["incident.zip"]


def test_one_that_was_damaged_where_it_lies_is_listed_as_such_and_can_be_removed(
    library: Bundles, file: Path
):
    kept = library.keep(file)
    kept.path.write_bytes(b"rust")
    [listed] = library.listed()
    assert (listed.manifest, "is not a whole bundle" in listed.damaged) == (None, True)
    assert library.remove("incident")
    assert library.listed() == []


def test_a_file_comes_before_a_name_and_what_is_neither_is_told(
    library: Bundles,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    library.keep(file)
    data = ["--data", str(tmp_path / "data")]
    for named in ("incident", str(file)):
        assert main.main(["replay", "range", "0", "9999", "--bundle", named, *data]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 40
    assert main.main(["replay", "range", "0", "9999", "--bundle", "nothing", *data]) == 1
    assert "see: switchyard replay bundles" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    Path("incident").write_bytes(b"a file of that name")
    assert main.main(["replay", "range", "0", "9999", "--bundle", "incident", *data]) == 1
    assert "incident is not a whole bundle" in capsys.readouterr().err
