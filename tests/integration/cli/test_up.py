"""`switchyard up` starts, serves, mends and ends a whole yard, and the other commands find it."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bus.server import find_binary, free_port
from components.cli.main import main
from tests.integration.cli.yards import (
    FAST,
    SWITCHYARD,
    Yard,
    alive,
    called,
    environment,
    switchyard,
    until,
    yard,
)

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
STEPS = ["accepted", "scheduled", "routed", "dispatched", "handed_over", "first_token", "finished"]
COMPONENTS = {
    "gateway-0": "gateway",
    "scheduler-0": "scheduler",
    "router-0": "router",
    "registry-0": "registry",
    "replay-0": "replay",
    "bridge-0": "bridge",
    "prefill-0": "worker",
    "decode-0": "worker",
}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """One yard for the tests that leave it as it was."""
    with yard(tmp_path_factory.mktemp("up") / "data", "--profile", FAST) as here:
        yield here


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """One yard for the tests that harm it and see it mend."""
    with yard(tmp_path_factory.mktemp("mended") / "data", "--profile", FAST) as here:
        yield here


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Yard]:
    """A yard of the test's own, for those that end it."""
    with yard(tmp_path / "data", "--profile", FAST) as here:
        yield here


def events(here: Yard, *words: str) -> list[dict[str, Any]]:
    done = here.run("events", *words, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# ----------------------------------------------------------------------------------------- README


def readme_commands() -> list[str]:
    """The shell blocks of the README, in order."""
    return re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_readmes_first_command_starts_an_up():
    assert readme_commands()[0].strip() == "make up"
    said = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "up", "ARGS=--decode 2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines()[-1].endswith("/switchyard up --decode 2")


def test_the_readmes_curl_streams_a_chat(running: Yard):
    command = readme_commands()[1]
    assert "http://127.0.0.1:8000/" in command
    done = subprocess.run(
        [
            "sh",
            "-c",
            command.replace("http://127.0.0.1:8000", running.url).replace("curl ", "curl -sS "),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    data = [line[6:] for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]", done
    choices = [choice for event in data[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices).strip()
    assert choices[-1]["finish_reason"]


def test_the_readme_names_folders_that_are_there():
    (listing,) = re.findall(r"## The folders\n\n(.*?)\n\n##", README, re.DOTALL)
    named = re.findall(r"^ {4}(\w+)/", listing, re.MULTILINE)
    assert named
    assert all((ROOT / name).is_dir() for name in named)


# ------------------------------------------------------------------------------- a healthy yard


def test_ready_is_the_only_line_and_a_request_succeeds_then(running: Yard):
    assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+", running.lines[0])
    assert running.complete().status_code == 200
    assert "curl -N" in running.said()


def test_status_shows_every_process_and_that_all_is_well(running: Yard):
    found = running.status()
    assert found["problems"] == []
    shown = {c["instance"]: c for c in found["components"]}
    assert {name: c["component"] for name, c in shown.items()} == COMPONENTS
    for name, c in shown.items():
        assert c["state"] == "ready"
        assert c["pid"] == running.pid(name)
        assert c["host"]
        assert c["since_ms"] > 0
    assert {name: c["role"] for name, c in shown.items() if c["role"]} == {
        "prefill-0": "prefill",
        "decode-0": "decode",
    }
    engines = {e["engine"]: e for e in found["engines"] if e["load"]}
    assert set(engines) == {"prefill-0", "decode-0"}
    assert found["bus"]["connected"]
    assert found["bus"]["jetstream"]
    assert found["bus"]["server_version"].startswith("2.")
    assert {s["name"] for s in found["bus"]["streams"]} >= {"REQUESTS", "JOURNAL", "FLEET"}


def test_status_for_people_has_a_row_for_each(running: Yard):
    done = running.run("status")
    assert done.returncode == 0, done.stdout
    for name in (*COMPONENTS, "REQUESTS", running.page().nats_url):
        assert name in done.stdout


def test_events_tell_a_requests_life_step_by_step(running: Yard):
    request_id = running.complete().headers["x-request-id"]

    def steps() -> list[str]:
        told = events(running, "REQUESTS", "--from", "1", "--request", request_id)
        return [event["what"] for event in told]

    until(lambda: set(steps()) >= set(STEPS), f"all steps of {request_id}: {steps()}")
    text = running.run("events", "REQUESTS", "--from", "1", "--request", request_id).stdout
    assert all(request_id in line for line in text.splitlines())


def test_events_follow_what_happens_from_now_on(running: Yard):
    words = ["events", "REQUESTS", "--follow", "--limit", "1", "--json", "--data", running.data]
    command = [str(SWITCHYARD), *map(str, words)]
    with subprocess.Popen(command, env=environment(), stdout=-1, text=True) as following:
        request_ids = set()

        def told() -> bool:
            request_ids.add(running.complete(tokens=1).headers["x-request-id"])
            return following.poll() is not None

        try:
            until(told, "the follower saw a request and ended by its limit")
        finally:
            following.kill()
        assert following.stdout is not None
        told_ids = {json.loads(line)["request_id"] for line in following.stdout}
    assert told_ids & request_ids


def test_events_of_an_unknown_stream_name_the_known_ones(running: Yard):
    done = running.run("events", "GOSSIP")
    assert done.returncode == 2
    assert "REQUESTS" in done.stderr


def test_no_command_ever_prints_what_a_request_said(running: Yard):
    prompt = "Xylophone Zanzibar quagmire"
    answer = running.complete(prompt, tokens=12)
    words = set(answer.json()["choices"][0]["text"].split())
    for stream in ("INFLIGHT", "TOKENS", "REQUESTS", "JOURNAL"):
        for form in ((), ("--json",)):
            done = running.run("events", stream, "--from", "1", *form)
            assert done.returncode == 0, done.stderr
            assert "Xylophone" not in done.stdout
            longest = max(words, key=len)
            assert f" {longest} " not in done.stdout


def test_a_test_datagram_shows_up_in_status_and_in_the_stream(running: Yard):
    engine = "http://10.0.0.7:8000"
    sent = running.run("send-state", "--engine-id", engine, "--field", "pending_tokens_total=77")
    assert sent.returncode == 0, sent.stderr
    assert "pending_tokens_total" in sent.stdout

    def seen() -> dict[str, Any] | None:
        engines = {e["engine"]: e for e in running.status()["engines"]}
        found: dict[str, Any] | None = engines.get(engine)
        return found

    found = until(seen, "the engine is in status")
    assert found["state"]["pending_tokens_total"] == 77
    told = [
        e for e in events(running, "ENGINE_STATE", "--from", "1") if e.get("engine_id") == engine
    ]
    assert told[-1]["states"][-1]["pending_tokens_total"] == 77
    assert engine in running.run("status").stdout


def test_states_show_an_engine_outside_with_its_history_and_the_counts(running: Yard):
    engine = "http://10.0.0.9:8000"
    for pending in (11, 22):
        field = f"pending_tokens_total={pending}"
        assert running.run("send-state", "--engine-id", engine, "--field", field).returncode == 0

    def known() -> list[int]:
        done = running.run("states", engine, "--json")
        history = json.loads(done.stdout)["history"] if done.returncode == 0 else []
        return [state["pending_tokens_total"] for state in history]

    until(lambda: known() == [11, 22], "both are in the history")
    text = running.run("states").stdout
    assert engine in text
    assert "datagrams, " in text
    assert "22" in running.run("states", engine, "--history", "1").stdout
    unknown = running.run("states", "nobody")
    assert (unknown.returncode, "no engine 'nobody'" in unknown.stderr) == (1, True)
    assert "no bridge answers as bridge-7" in running.run("states", "--bridge", "bridge-7").stderr
    assert running.run("states", engine, "--history", "101").returncode == 2


def test_the_doctor_finds_a_running_yard_well_by_sending_a_datagram_through_it(running: Yard):
    done = running.run("doctor", "--json")
    assert done.returncode == 0, done.stdout
    found = {verdict["check"]: verdict for verdict in json.loads(done.stdout)}
    for check in ("http", "nats", "processes", "clocks", "datagram"):
        assert found[check]["grade"] == "ok", found[check]
    own_port = running.url.rsplit(":", 1)[1]
    assert f"{own_port} is held by the `up`" in running.run("doctor", "--port", own_port).stdout


def test_a_bench_of_the_yard_has_exact_lengths_and_no_errors(running: Yard, tmp_path: Path):
    done = called(
        *("bench", "serve", "--url", running.url, "--concurrency", 4, "--requests", 24),
        *("--prompt-tokens", 40, "--output-tokens", 16, "--seed", 1, "--json"),
        *("--slo-ttft-ms", 5000, "--save", tmp_path / "records.jsonl"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert (figures["ok"], figures["errors"], figures["off_length"]) == (24, {}, 0)
    assert (figures["prompt_tokens"], figures["output_tokens"]) == (24 * 40, 24 * 16)
    assert figures["goodput"]["share"] == 1.0
    assert figures["ttft_ms"]["p50"] >= 5
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 24


def test_a_bench_of_chats_has_prompts_of_the_length_that_the_server_counts(running: Yard):
    done = switchyard(
        *("bench", "serve", "--url", running.url, "--api", "chat", "--concurrency", 2),
        *("--requests", 4, "--prompt-tokens", 100, "--output-tokens", 8, "--json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == 400


def test_up_itself_holds_no_connection(running: Yard):
    assert psutil.Process(running.process.pid).net_connections() == []


# --------------------------------------------------------------------------------------- refusals


def test_a_second_up_on_the_same_folder_is_refused(running: Yard):
    done = running.run("up", "--port", "0", "--udp-port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"pid {running.process.pid}" in done.stderr
    assert "--data" in done.stderr


def test_a_taken_port_is_refused_before_anything_starts(running: Yard, tmp_path: Path):
    port = running.url.rsplit(":", 1)[1]
    done = switchyard("up", "--port", port, "--udp-port", "0", "--data", tmp_path / "other")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{port} is taken" in done.stderr
    assert "--port 0" in done.stderr
    assert not (tmp_path / "other" / "nats").exists()


def test_a_worker_that_cannot_start_ends_up_in_its_own_words(tmp_path: Path):
    data = tmp_path / "data"
    words = ("--port", "0", "--udp-port", "0", "--data", data, "--profile", "no-such-model")
    done = switchyard("up", *words)
    assert done.returncode == 78, done.stderr
    assert done.stdout == ""
    assert "no-such-model" in done.stderr
    assert "cannot start" in done.stderr


def test_without_an_up_the_other_commands_say_so(tmp_path: Path):
    for command in (("status",), ("events", "REQUESTS"), ("send-state",)):
        done = switchyard(*command, "--data", tmp_path)
        assert done.returncode == 1
        assert "no `switchyard up` runs" in done.stderr


# --------------------------------------------------------------------------------- harm, and ends


@pytest.mark.parametrize("name", ["router-0", "gateway-0", "decode-0"])
def test_a_killed_process_is_started_again_and_requests_succeed(mended: Yard, name: str):
    before = mended.pid(name)
    assert before is not None
    psutil.Process(before).kill()
    until(lambda: mended.pid(name) not in {before, None}, f"{name} lives again")

    until(mended.serves, "a request is served again")
    until(lambda: mended.status()["ok"], "status is well again")
    assert f"{name} was ended by SIGKILL; started again" in mended.said()


def test_a_killed_nats_server_comes_back_on_its_port_with_all_its_streams(mended: Yard):
    page = mended.page()
    before = mended.pid("nats-server")
    assert before is not None
    psutil.Process(before).kill()
    until(lambda: mended.pid("nats-server") not in {before, None}, "nats-server lives again")
    assert mended.page().nats_url == page.nats_url
    until(lambda: mended.status()["ok"], "status is well again")
    until(mended.serves, "a request is served again")
    assert {s["name"] for s in mended.status()["bus"]["streams"]} >= {"TOKENS", "INFLIGHT"}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_leaves_nothing(own: Yard, how: signal.Signals):
    family = own.family()
    assert len(family) == len(COMPONENTS) + 1
    with own.client() as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        body = {
            "model": model,
            "prompt": "x",
            "max_tokens": 300,
            "ignore_eos": True,
            "stream": True,
        }
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines)  # it runs
            own.process.send_signal(how)
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]", "what ran was not finished"
    assert own.wait() == 0, own.said()
    assert alive(family) == []
    assert own.lines == [f"ready {own.url}"], "standard output has more than the ready line"
    assert not (own.data / "run.json").exists()
    url = own.url.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError), socket.create_connection((url[0], int(url[1])), 2):
        pass


def test_a_yard_can_be_started_again_on_its_folder_and_remembers(tmp_path: Path):
    data = tmp_path / "data"
    with yard(data, "--profile", FAST) as first:
        request_id = first.complete().headers["x-request-id"]
        until(lambda: events(first, "REQUESTS", "--request", request_id), "it is recorded")
        assert first.stop() == 0
    with yard(data, "--profile", FAST) as second:
        assert events(second, "REQUESTS", "--from", "1", "--request", request_id)
        assert second.complete().status_code == 200


def test_a_killed_up_takes_everything_with_it(own: Yard):
    family = own.family()
    own.process.kill()
    own.process.wait()
    until(lambda: alive(family) == [], "nothing is left")


def test_a_ctrl_c_ends_an_up_in_this_very_process(tmp_path: Path):
    data, out, before = tmp_path / "data", io.StringIO(), psutil.Process().children()

    def interrupt_when_ready() -> None:
        with contextlib.suppress(AssertionError):
            until(lambda: "ready" in out.getvalue(), "it is ready")
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt_when_ready)
    with contextlib.redirect_stdout(out):
        interrupting.start()
        words = ("--port", "0", "--udp-port", "0", "--profile", FAST, "--data", str(data))
        assert main(["up", *words]) == 0
    interrupting.join()
    assert out.getvalue().startswith("ready http://")
    assert psutil.Process().children() == before


def test_a_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path):
    here = Yard(tmp_path / "data", ["--profile", FAST])
    try:
        until(lambda: "starting processes" in here.said(), "it is starting")
        family = until(here.family, "it has children")
        assert here.stop() == 130
        assert alive(family) == []
        assert here.lines == []
    finally:
        here.clean_up()


def test_a_nats_that_runs_elsewhere_serves_a_yard_that_has_its_keys(tmp_path: Path):
    port, keys = free_port(), tmp_path / "keys"
    where = ("--listen", f"127.0.0.1:{port}", "--store-dir", tmp_path / "jetstream")
    assert switchyard("setup", "keys", "--keys", keys, *where).returncode == 0
    config = str(keys / "nats-server.conf")
    with subprocess.Popen([find_binary(), "-c", config], stderr=subprocess.DEVNULL) as server:
        try:
            url = f"nats://127.0.0.1:{port}"
            streams = ("setup", "streams", "--nats", url, "--keys", keys)
            until(lambda: switchyard(*streams).returncode == 0, "streams are created")
            words = ("--nats", url, "--keys", str(keys), "--profile", FAST)
            with yard(tmp_path / "data", *words) as here:
                assert here.complete().status_code == 200
                assert "nats-server" not in here.page().processes
                found = switchyard("status", "--nats", url, "--keys", keys, "--json")
                shown = json.loads(found.stdout)
                assert {c["instance"] for c in shown["components"]} == set(COMPONENTS)
                assert here.stop() == 0
            assert server.poll() is None, "it was not ours to end"
        finally:
            server.terminate()


def test_aggregated_engines_serve_alone(tmp_path: Path):
    with yard(tmp_path / "data", "--aggregated", "1", "--profile", FAST) as here:
        assert here.complete().status_code == 200
        roles = {c["instance"]: c["role"] for c in here.status()["components"] if c["role"]}
        assert roles == {"aggregated-0": "aggregated"}
