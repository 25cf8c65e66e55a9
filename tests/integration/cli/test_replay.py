"""`switchyard replay` and `explain` on a yard that served a few requests, and without it."""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.cli.instants import show
from tests.integration.cli.yards import (
    FAST,
    SWITCHYARD,
    Yard,
    called,
    environment,
    switchyard,
    until,
    yard,
)

pytestmark = pytest.mark.timeout(180)
REQUESTS = 12


@dataclass(frozen=True, slots=True)
class Incident:
    """A yard that served requests between two instants, and a bundle of that."""

    here: Yard
    from_ms: int
    to_ms: int
    request_id: str
    bundle: Path


@pytest.fixture(scope="module")
def incident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Incident]:
    folder = tmp_path_factory.mktemp("past")
    with yard(folder / "data", "--decode", "2", "--profile", FAST) as here:
        from_ms = time.time_ns() // 1_000_000
        ids = [here.complete(f"Track {n}?").headers["x-request-id"] for n in range(REQUESTS)]
        time.sleep(0.3)  # the last batch of steps leaves within 10 ms
        to_ms = time.time_ns() // 1_000_000
        bundle = folder / "incident.zip"
        span = ("--from", from_ms, "--to", to_ms)
        done = here.run("replay", "export", bundle, *span)
        assert done.returncode == 0, done.stderr
        yield Incident(here, from_ms, to_ms, ids[-1], bundle)


def test_the_fleet_is_shown_as_it_was(incident: Incident):
    done = incident.here.run("replay", "at", incident.to_ms, "--json")
    then = json.loads(done.stdout)
    assert {p["instance"] for p in then["processes"]} >= {"decode-0", "decode-1", "scheduler-0"}
    assert {e["engine"] for e in then["engines"]} == {"prefill-0", "decode-0", "decode-1"}
    assert {c["instance"]: c["whole"] for c in then["cores"]} == {
        "router-0": True,
        "scheduler-0": True,
    }
    text = incident.here.run("replay", "at", show(incident.to_ms)).stdout
    assert "decode-1" in text
    assert "rebuilt up to entry" in text


def test_a_range_holds_each_step_of_each_request(incident: Incident):
    words = ("replay", "range", incident.from_ms, incident.to_ms, "--stream", "requests")
    done = incident.here.run(*words, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["at_ms"] for line in lines if line["what"] == "finished"]
    assert sum(line["what"] == "finished" for line in lines) == REQUESTS
    one = incident.here.run(*words, "--request", incident.request_id).stdout
    assert one.count(incident.request_id) == len(one.splitlines()) >= 6


def test_a_range_is_played_at_the_pace_that_is_asked_for(incident: Incident):
    span_s = (incident.to_ms - incident.from_ms) / 1000
    began_s = time.monotonic()
    words = ("replay", "range", incident.from_ms, incident.to_ms, "--stream", "requests")
    done = incident.here.run(*words, "--speed", max(0.05, span_s / 2))
    assert done.returncode == 0
    # Between its first and last step it takes two seconds, less what lies outside of them.
    assert time.monotonic() - began_s > 0.5


def test_why_a_request_went_where_it_went(incident: Incident):
    found = json.loads(incident.here.run("explain", incident.request_id, "--json").stdout)
    assert (found["outcome"], found["attempts"], found["tenant"]) == ("finished", 1, "default")
    assert [c["what"] for c in found["choices"]] == ["prefill", "decode"]
    decode = found["choices"][1]
    assert {c["worker"] for c in decode["candidates"]} == {"decode-0", "decode-1"}
    assert sum(c["chosen"] for c in decode["candidates"]) == 1
    text = incident.here.run("explain", incident.request_id).stdout
    assert "decode by least_loaded" in text
    unknown = incident.here.run("explain", "req-unknown")
    assert unknown.returncode == 1
    assert "no step of req-unknown" in unknown.stdout


def test_the_journal_decides_the_same_again_and_another_policy_otherwise(incident: Incident):
    words = ("replay", "run", "--json", "--bundle", incident.bundle)
    same = json.loads(called(*words).stdout)
    assert [life["exact"] for life in same["lives"]] == [True, True]
    assert sum(life["decisions"] for life in same["lives"]) > REQUESTS
    other = json.loads(called(*words, "--route", "segregate").stdout)
    assert (other["compared"], other["different"]) == (REQUESTS, REQUESTS)
    text = called("replay", "run", "--bundle", incident.bundle, "--route", "segregate").stdout
    assert f"{REQUESTS} of {REQUESTS} decisions would differ" in text


@pytest.mark.parametrize("by", ["its file", "its name"])
def test_a_bundle_answers_without_a_server(incident: Incident, tmp_path: Path, by: str):
    where: tuple[object, ...] = ("--bundle", incident.bundle)
    if by == "its name":
        elsewhere = ("--data", tmp_path / "laptop")
        seen = called("replay", "import", incident.bundle, "--name", "monday", *elsewhere)
        assert "REQUESTS" in seen.stdout
        assert "switchyard replay run --route round_robin --bundle monday" in seen.stdout
        where = ("--bundle", "monday", *elsewhere)
    live = json.loads(incident.here.run("replay", "at", incident.to_ms, "--json").stdout)
    then = json.loads(called("replay", "at", incident.to_ms, "--json", *where).stdout)
    assert (then["processes"], then["engines"]) == (live["processes"], live["engines"])
    told = json.loads(incident.here.run("explain", incident.request_id, "--json").stdout)
    assert json.loads(called("explain", incident.request_id, "--json", *where).stdout) == told
    again = json.loads(called("replay", "run", "--json", *where).stdout)
    assert [life["exact"] for life in again["lives"]] == [True, True]


def test_incidents_are_kept_listed_and_removed(incident: Incident, tmp_path: Path):
    data = ("--data", tmp_path / "laptop")
    assert "no bundle was imported" in called("replay", "bundles", *data).stdout
    kept = json.loads(called("replay", "import", incident.bundle, "--json", *data).stdout)
    assert (kept["form"], kept["name"]) == ("switchyard-bundle", "incident")
    assert json.loads(called("replay", "bundles", "--json", *data).stdout) == [kept]
    [_, row] = called("replay", "bundles", *data).stdout.splitlines()
    assert row.startswith(f"incident  {show(kept['from_ms'])}  {show(kept['to_ms'])}  FLEET ")
    assert f"REQUESTS {kept['streams']['REQUESTS']['messages']}" in row
    twice = called("replay", "import", incident.bundle, *data)
    assert (twice.returncode, "choose another --name" in twice.stderr) == (1, True)
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(incident.bundle.read_bytes()[:-100])
    refused = called("replay", "import", damaged, *data)
    assert (refused.returncode, "damaged.zip is not a whole" in refused.stderr) == (1, True)
    assert "no bundle was" in called("replay", "bundles", "--remove", "incident", *data).stdout
    gone = called("replay", "bundles", "--remove", "incident", *data)
    assert (gone.returncode, "no bundle 'incident'" in gone.stderr) == (1, True)


def test_a_bundle_of_a_bundle_holds_the_same(incident: Incident, tmp_path: Path):
    again = tmp_path / "again.zip"
    called("replay", "export", again, "--bundle", incident.bundle)
    streams = [
        json.loads(called("replay", "import", path, "--json", "--data", tmp_path).stdout)["streams"]
        for path in (incident.bundle, again)
    ]
    assert streams[0]["REQUESTS"] == streams[1]["REQUESTS"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("at", "yesterday"), 2, "is no instant"),
        (("range", "5m", "--speed", "0"), 2, "--speed must be more than 0"),
        (("range", "5m", "--stream", "TOKENS"), 2, "there are FLEET"),
        (("run", "--route", "nonsense"), 2, "there are: least_loaded"),
        (("run", "--from", "now", "--to", "5m"), 2, "--to lies before --from"),
        (("import", "none.zip"), 1, "there is no none.zip"),
    ],
)
def test_what_cannot_be_done_is_told(
    incident: Incident, words: tuple[str, ...], code: int, says: str
):
    where = () if words[0] == "import" else ("--bundle", str(incident.bundle))
    done = switchyard("replay", *words, *where)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_the_tail_shows_what_happens_now(incident: Incident, tmp_path: Path):
    said = tmp_path / "tail.txt"
    with said.open("w") as out:
        follower = subprocess.Popen(
            [SWITCHYARD, "replay", "tail", "--stream", "requests", "--data", incident.here.data],
            stdout=out,
            env=environment(),
        )
    try:
        until(
            lambda: incident.here.complete("Now?").is_success and "finished" in said.read_text(),
            "the tail shows a request that came after it",
        )
    finally:
        follower.terminate()
        follower.wait(10)
    assert "accepted" in said.read_text()
