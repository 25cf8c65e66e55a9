"""A datagram by hand, signed as an engine's agent signs."""

import socket
import time
from pathlib import Path

import pytest

from components.cli import main
from components.domain.signed_frame import verify


def keys_file(folder: Path, mode: int) -> Path:
    file = folder / "udp.keys"
    file.write_text(f"k1 {'ab' * 32}\nold {'cd' * 32}\n")
    file.chmod(mode)
    return file


def test_a_signed_one_is_a_frame_under_the_first_key(tmp_path: Path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bridge:
        bridge.bind(("127.0.0.1", 0))
        bridge.settimeout(5)
        where = ["--host", "127.0.0.1", "--port", str(bridge.getsockname()[1])]
        signed = ["--sign", str(keys_file(tmp_path, 0o600)), "--engine-id", "e1"]
        assert main.main(["send-state", *where, *signed]) == 0
        frame = verify(bridge.recv(4096), {"k1": b"\xab" * 32})
    assert b'"engine_id":"e1"' in frame.payload
    assert (frame.seq, abs(frame.sent_ms - time.time_ns() // 1_000_000) < 5_000) == (1, True)


def test_keys_that_others_may_read_sign_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = keys_file(tmp_path, 0o644)
    where = ["--host", "127.0.0.1", "--port", "9"]
    assert main.main(["send-state", *where, "--sign", str(file)]) == 1
    said = capsys.readouterr()
    assert (said.out, f"others may read the keys in {file}: chmod 600 {file}" in said.err) == (
        "",
        True,
    )
