"""A workload is read from the known forms of traces, or refused with a reason."""

import gzip
import lzma
from pathlib import Path

import pytest

from components.bench.workload import BadTrace, equal, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:47.6805900,396,109
2023-11-16 18:15:50.6805900,879,55
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 6000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 2]}
"""
SHIPPED = Path(__file__).parents[2] / "data" / "azure_conv_slice.csv.gz"


def lengths(path: Path, limit: int | None = None) -> list[tuple[float, int, int]]:
    arrivals = read_trace(path, limit)
    return [(round(a.at_s, 6), a.prompt_tokens, a.output_tokens) for a in arrivals]


def test_azures_form_is_read_from_time_zero(tmp_path: Path):
    (tmp_path / "a.csv").write_text(AZURE)
    assert lengths(tmp_path / "a.csv") == [(0.0, 374, 44), (1.0, 396, 109), (4.0, 879, 55)]
    assert len(lengths(tmp_path / "a.csv", limit=2)) == 2


def test_mooncakes_form_is_read_packed(tmp_path: Path):
    (tmp_path / "m.jsonl.xz").write_bytes(lzma.compress(MOONCAKE.encode()))
    assert lengths(tmp_path / "m.jsonl.xz") == [(0.0, 6758, 500), (3.0, 7322, 490)]


def test_the_trace_in_the_repository_has_the_500_requests_of_the_shows():
    assert len(lengths(SHIPPED, limit=500)) == 500


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("headless.csv", b"1,2,3\n"),
        ("words.csv", b"TIMESTAMP,ContextTokens,GeneratedTokens\nnow,many,few\n"),
        ("cut.jsonl", b'{"timestamp": 1}\n'),
        ("not.gz", b"plain"),
        ("cut.csv.gz", gzip.compress(AZURE.encode() * 50)[:60]),
        ("binary.csv", b"\xff\xfe\x00"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadTrace, match=name):
        read_trace(tmp_path / name)


def test_a_missing_trace_is_named(tmp_path: Path):
    with pytest.raises(BadTrace, match=r"nowhere\.csv"):
        read_trace(tmp_path / "nowhere.csv")


def test_equal_requests_are_all_alike():
    assert {(a.at_s, a.prompt_tokens, a.output_tokens) for a in equal(3, 8, 4)} == {(0.0, 8, 4)}
