"""Who signs and who checks have the same demands on the file of keys, and say the same."""

from pathlib import Path

import pytest

from components.domain.signed_frame import BadKeys
from components.host.signing_keys import read_keys


def written(folder: Path, data: bytes, mode: int = 0o600) -> str:
    file = folder / "udp.keys"
    file.write_bytes(data)
    file.chmod(mode)
    return str(file)


GOOD = f"new {'ab' * 32}\nold {'cd' * 32}\n".encode()


def test_keys_come_in_the_order_of_the_file(tmp_path: Path):
    keys = read_keys(written(tmp_path, GOOD))
    assert list(keys.items()) == [("new", b"\xab" * 32), ("old", b"\xcd" * 32)]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_is_open_to_others_is_refused_with_what_to_do(tmp_path: Path, mode: int):
    file = written(tmp_path, GOOD, mode)
    with pytest.raises(BadKeys) as refused:
        read_keys(file)
    assert str(refused.value) == f"others may read the keys in {file}: chmod 600 {file}"


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "no key"), (b"k1 abcd", "at least 32"), (b"\xff k", "ascii")]
)
def test_what_is_no_file_of_keys_is_named(tmp_path: Path, data: bytes, why: str):
    file = written(tmp_path, data)
    with pytest.raises(BadKeys, match=f"cannot use the keys in {file}: .*{why}"):
        read_keys(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadKeys, match=r"cannot use the keys in .*none"):
        read_keys(str(tmp_path / "none"))
