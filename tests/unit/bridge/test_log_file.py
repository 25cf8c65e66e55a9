"""The seed's log: its lines, its rotation, and that it harms nobody."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from components.bridge import log_file
from components.bridge.log_file import LogFile, line
from components.host.errors import CannotStart
from schemas.examples import STATE


def logged(
    path: Path, count: Callable[[str, int], None], *, bytes_max: int = 10**9, files: int = 2
) -> LogFile:
    return LogFile(path, bytes_max=bytes_max, files=files, count=count)


def test_a_line_is_the_seed_s():
    written = json.loads(line(STATE))
    assert written["timestamp"] == STATE.received_ms / 1000
    assert list(written["state"]) == [
        "engine_id",
        "timestamp_ms",
        "latency_pred_ms",
        "scheduling_mode",
        "pending_tokens_total",
        "kv_cache_free_blocks",
        "kv_cache_total_blocks",
        "engine_capacity",
    ]


def test_every_state_is_a_line_in_order(tmp_path: Path):
    counts: Counter[str] = Counter()
    log = logged(tmp_path / "logs" / "s.jsonl", lambda n, by: counts.update({n: by}))
    for number in range(50):
        log.write([STATE.model_copy(update={"timestamp_ms": number})])
    log.close()
    lines = (tmp_path / "logs" / "s.jsonl").read_text().splitlines()
    assert [json.loads(x)["state"]["timestamp_ms"] for x in lines] == list(range(50))
    assert counts == {"logged_total": 50}


def test_full_files_are_numbered_and_the_oldest_goes(tmp_path: Path):
    path, size = tmp_path / "s.jsonl", len(line(STATE))
    log = logged(path, lambda *_: None, bytes_max=3 * size)
    for number in range(10):
        log.write([STATE.model_copy(update={"timestamp_ms": STATE.timestamp_ms + number})])
    log.close()
    said = {
        p.name: [
            json.loads(x)["state"]["timestamp_ms"] - STATE.timestamp_ms
            for x in p.read_text().splitlines()
        ]
        for p in tmp_path.iterdir()
    }
    assert said == {"s.jsonl": [9], "s.jsonl.1": [6, 7, 8], "s.jsonl.2": [3, 4, 5]}


def test_without_older_files_the_one_file_starts_anew(tmp_path: Path):
    path = tmp_path / "s.jsonl"
    log = logged(path, lambda *_: None, bytes_max=len(line(STATE)), files=0)
    log.write([STATE])
    log.write([STATE])
    log.close()
    assert len(path.read_text().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path):
    path, counts = tmp_path / "s.jsonl", Counter[str]()
    log = logged(path, lambda n, by: counts.update({n: by}))
    log.write([STATE])
    while counts["logged_total"] < 1:
        pass
    path.rename(tmp_path / "rotated")
    log.write([STATE])
    log.close()
    assert path.read_bytes() == (tmp_path / "rotated").read_bytes() == line(STATE)


def test_a_full_disk_is_counted_and_survived(tmp_path: Path):
    counts: Counter[str] = Counter()
    log = logged(Path("/dev/full"), lambda n, by: counts.update({n: by}))
    log.write([STATE, STATE])
    log.write([STATE])
    log.close()
    assert counts == {"log_errors_total": 2, "log_dropped_total": 3}


def test_a_disk_that_is_too_slow_costs_states_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_file, "WAITING_MAX", 2)
    counts: Counter[str] = Counter()
    log = logged(tmp_path / "s.jsonl", lambda n, by: counts.update({n: by}))
    released = threading.Event()
    monkeypatch.setattr(log, "_append", lambda data: released.wait(10))
    for _ in range(10):
        log.write([STATE])
    assert counts["log_dropped_total"] >= 7
    released.set()
    log.close()
    assert counts["log_dropped_total"] + counts["logged_total"] == 10


def test_a_file_that_cannot_be_written_keeps_the_bridge_from_starting(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="cannot write the log of states"):
        logged(tmp_path / "file" / "s.jsonl", lambda *_: None)
