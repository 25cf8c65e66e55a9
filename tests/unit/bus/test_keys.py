"""nkey seeds as files."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nkeys
import pytest

from bus import keys


def test_a_missing_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gateway-0.nk"
    public = keys.create_or_load(path)
    assert public.startswith("U")
    assert len(public) == 56
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path], "nothing else is left"


def test_an_existing_key_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "a.nk"
    assert keys.create_or_load(path) == keys.create_or_load(path) == keys.load(path)
    assert keys.create_or_load(tmp_path / "b.nk") != keys.load(path)


def test_the_seed_signs_what_the_public_key_says(tmp_path: Path) -> None:
    path = tmp_path / "a.nk"
    public = keys.create_or_load(path)
    pair = nkeys.from_seed(bytearray(path.read_bytes()))
    assert pair.public_key.decode() == public
    assert pair.verify(b"nonce", pair.sign(b"nonce"))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nk"
    keys.create_or_load(path)
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        keys.create_or_load(path)


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "a.nk"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: keys.create_or_load(path), range(32)))
    assert len(found) == 1


def test_what_is_no_seed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.nk"
    for content in ("", "not a seed", "SUAA"):
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(ValueError, match="holds no nkey seed"):
            keys.load(path)
