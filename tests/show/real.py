"""Real vLLM engines as a user starts them, with a tiny model, and what one engine alone answers."""

import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import httpx
import psutil

from bus.bus import Bus
from bus.codec import unpack_frame
from bus.errors import BusError
from bus.history import History
from bus.subjects import control_engine, show_fleet
from components.cli.operator_bus import connected
from schemas.engine import ControlEngine, ControlEngineReply
from schemas.fleet import ShowFleet, ShowFleetReply
from tests.show.fleet import SWITCHYARD, Fleet, until
from tests.show.proof import Run, Skip, Void
from tests.support.lines import lines_of

#: float32, so that batches of any size give the same ids; chunks of 256, so that prompts have some.
ENGINE_ARGS = {
    "dtype": "float32",
    "max_model_len": 2048,
    "enforce_eager": True,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "max_num_batched_tokens": 256,
    "seed": 0,
    # A random model would write blanks between the tokens of JSON for ever.
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
#: A first start compiles and reads from a cold disk.
READY_S = 300.0
APART = ("--prefill", "1", "--decode", "1")
ALONE = ("--aggregated", "1")


@cache
def model() -> Path:
    """A directory with the tiny model; raises ``Skip`` where there is no vLLM."""
    folder = Path(mkdtemp(prefix="tiny-")) / "tiny"
    command = [*SWITCHYARD, "tiny-model", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skip(f"no model: {done.stderr.strip().splitlines()[-1:]}")
    return folder


class RealFleet(Fleet):
    """One `switchyard up --engine vllm`."""

    def __init__(
        self,
        folder: Path,
        roles: Sequence[str] = APART,
        fault: str | None = None,
        **settings: str | float,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "yard.toml"
        config.write_text("\n".join(_tables("worker.engine_args", ENGINE_ARGS)), encoding="utf-8")
        arguments = ("--engine", "vllm", "--model", str(model()), "--config", str(config), *roles)
        super().__init__(folder, arguments, fault, **settings)

    async def start(self, timeout_s: float = READY_S) -> None:
        await super().start(timeout_s)

    async def model_name(self) -> str:
        async with self.client() as client:
            listed = (await client.get("/v1/models")).json()["data"]
        return str(listed[0]["id"])

    async def token_ids(self) -> dict[str, list[int]]:
        """The ids of every request of the last minutes, from the frames on the bus.

        Of several attempts the highest at each index counts, as at the gateway.
        """
        page = self.page()
        found: dict[str, dict[int, tuple[int, int]]] = {}
        async with History(page.nats_url, key_file=Path(page.keys_dir) / "history.nk") as history:
            async for stored in history.read("TOKENS"):
                for request_id, attempt, _, first, ids, *_ in unpack_frame(stored.data)[2]:
                    known = found.setdefault(request_id, {})
                    for index, token_id in enumerate(ids, first):
                        known[index] = max(known.get(index, (0, 0)), (attempt, token_id))
        return {r: [known[i][1] for i in sorted(known)] for r, known in found.items()}

    @property
    def engines(self) -> list[str]:
        return [n for n, p in self.page().processes.items() if p.component == "worker"]

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Bus]:
        """A bus that may ask everyone."""
        page = self.page()
        key = Path(page.keys_dir) / "operator.nk"
        async with connected(page.nats_url, key, page.subject_prefix) as bus:
            yield bus

    async def leases(self, bus: Bus) -> dict[str, int]:
        """Handoffs that hold blocks, as the registry last heard of each engine."""
        shown = await bus.ask(show_fleet(), ShowFleet(), ShowFleetReply, timeout_s=5)
        return {e.engine: e.load.leases for e in shown.engines if e.load and not e.stale}

    async def kill_whole(self, name: str) -> None:
        """SIGKILL an agent and its engine's processes, children first, as a crash does."""
        root = psutil.Process(self.pid(name))
        for process in (*root.children(recursive=True), root):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await until(lambda: not root.is_running() or _is_zombie(root), 5, f"{name} did not die")


def _tables(name: str, values: Mapping[str, object]) -> Iterator[str]:
    """Lines of TOML: ``name`` with its values, then the tables within."""
    yield f"[{name}]"
    for key, value in values.items():
        if not isinstance(value, dict):
            yield f"{key} = {json.dumps(value)}"
    yield ""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _tables(f"{name}.{key}", value)


async def freed(bus: Bus, engine: str, within_s: float) -> float | None:
    """Seconds until the engine's block pool had every block back; None when it had not.

    An engine can empty its prefix cache only then, so this looks into the pool and not at a gauge
    that an idle engine stops updating.
    """
    began = time.monotonic()
    question = ControlEngine(action="reset_prefix_cache")
    while True:
        with contextlib.suppress(BusError):
            reply = await bus.ask(control_engine(engine), question, ControlEngineReply, timeout_s=5)
            if reply.done:
                return time.monotonic() - began
        if time.monotonic() - began > within_s:
            return None
        await asyncio.sleep(0.002)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass(slots=True)
class Asked:
    """One greedy completion of a prompt of ids, and what came of it."""

    prompt: list[int]
    max_tokens: int = 24
    request_id: str = ""
    text: str = ""
    tokens: int = 0
    finish: str | None = None
    error: str = ""
    first_s: float | None = None
    ended_s: float | None = None
    #: Leave after so many pieces (0: before the first one, after ``leave_after_s``).
    leave_after: int | None = None
    leave_after_s: float = 0.0
    left: bool = field(default=False)

    def again(self) -> "Asked":
        return Asked(self.prompt, self.max_tokens)


def prompts(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    """Random ids of printable ASCII."""
    rng = random.Random(seed)
    return [[rng.randrange(8, 102) for _ in range(length)] for length in lengths]


def lengths(seed: int, count: int, shortest: int, longest: int) -> list[int]:
    """Both ends and what lies between, most of it short."""
    rng = random.Random(seed)
    middle = [int(shortest * (longest / shortest) ** rng.random()) for _ in range(count - 2)]
    return [shortest, longest, *middle]


async def ask(client: httpx.AsyncClient, name: str, one: Asked) -> None:
    """Stream it; whatever happens is noted, nothing is raised."""
    body = {
        "model": name,
        "prompt": one.prompt,
        "max_tokens": one.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    try:
        if one.leave_after == 0:
            async with asyncio.timeout(one.leave_after_s):
                await _stream(client, body, one)
        else:
            await _stream(client, body, one)
    except TimeoutError:
        one.left = True
    except httpx.HTTPError as error:
        one.error = f"{type(error).__name__}: {error}"
    finally:
        one.ended_s = time.monotonic()


async def _stream(client: httpx.AsyncClient, body: dict[str, object], one: Asked) -> None:
    async with client.stream("POST", "/v1/completions", json=body) as response:
        one.request_id = response.headers.get("x-request-id", "")
        if response.status_code != 200:
            one.error = (await response.aread()).decode()[:300]
            return
        pieces = 0
        async for line in lines_of(response):
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                one.error = str(event["error"])[:300]
                return
            for choice in event["choices"]:
                one.text += choice["text"]
                one.finish = choice["finish_reason"] or one.finish
                one.first_s = one.first_s or time.monotonic()
                pieces += 1
            if one.leave_after and pieces >= one.leave_after:
                one.left = True
                return


async def ask_all(
    fleet: RealFleet, asked: Sequence[Asked], at_a_time: int, name: str | None = None
) -> None:
    """So many at a time; returns when the last has ended."""
    name = name or await fleet.model_name()
    gate = asyncio.Semaphore(at_a_time)
    async with fleet.client() as client:

        async def one(which: Asked) -> None:
            async with gate:
                await ask(client, name, which)

        await asyncio.gather(*(one(a) for a in asked))


_alone: dict[tuple[tuple[int, ...], int], list[int]] = {}


async def answers_alone(folder: Path, asked: Sequence[Asked]) -> list[list[int]]:
    """Token ids of one engine's greedy runs; what is known already is not asked again."""
    unknown = [a.again() for a in asked if _key(a) not in _alone]
    if unknown:
        fleet = RealFleet(folder / "alone", ALONE)
        async with fleet:
            await ask_all(fleet, unknown, 8)
            ids = await fleet.token_ids()
        for one in unknown:
            if one.error or one.request_id not in ids:
                raise Void(f"one engine alone did not answer: {one.error}")
            _alone[_key(one)] = ids[one.request_id]
    return [_alone[_key(a)] for a in asked]


def _key(asked: Asked) -> tuple[tuple[int, ...], int]:
    return tuple(asked.prompt), asked.max_tokens


@asynccontextmanager
async def apart(run: Run, *faults: str, **settings: str | float) -> AsyncIterator[RealFleet]:
    """Prefill and decode apart, with what the run plants and more."""
    planted = ",".join(f for f in (run.fault, *faults) if f)
    fleet = RealFleet(run.folder / "fleet", APART, planted or None, **settings)
    async with fleet:
        yield fleet
