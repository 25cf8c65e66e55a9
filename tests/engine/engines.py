"""A started ``VllmEngine``, a sink that keeps everything, and jobs for it."""

from contextlib import asynccontextmanager

from components.domain.bodies import Emitted
from components.domain.pages import page_hashes
from components.worker.engine import Job
from components.worker.vllm.engine import VllmEngine
from components.worker.vllm.handoff import Relay
from components.worker.vllm.loading import VllmModel, load_async_llm
from schemas.body import SamplingParameters
from tests.support.nats import until
from tests.support.sink import Sink

#: float32, so that batches of different sizes give the same ids.
SMALL = {
    "dtype": "float32",
    "max_model_len": 1024,
    "enforce_eager": True,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "max_num_batched_tokens": 2048,
    "seed": 0,
}
WITHIN_S = 30.0


@asynccontextmanager
async def running_engine(
    directory, exchange=None, kv_transfer=None, on_pages=None, parsing=None, **engine_args
):
    """The engine and its sink; afterwards nothing may be left of any job.

    ``parsing``: fields of ``VllmModel`` that concern parsers.
    """
    faults: list[BaseException] = []
    model = VllmModel(
        "tiny",
        str(directory),
        1,
        {**SMALL, **engine_args},
        kv_transfer or {},
        on_pages is not None,
        **(parsing or {}),
    )
    engine = VllmEngine(
        lambda: load_async_llm(model),
        exchange or Relay(),
        on_fault=faults.append,
        on_pages=on_pages or (lambda _: None),
    )
    sink = Sink()
    try:
        await engine.start(sink)
        yield engine, sink
        assert not engine._jobs
        load = engine.load()
        assert (load.running, load.waiting, load.queued_tokens, load.kv_pages_used) == (0, 0, 0, 0)
    finally:
        await engine.stop()
    if faults:
        raise faults[0]


def job(
    request_id="r1",
    *,
    prompt,
    attempt=1,
    phase="aggregated",
    emitted=None,
    kv=None,
    tenant=0,
    **given,
):
    """Greedy and deaf to the end of text unless told otherwise."""
    parameters = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True, **given}
    known = {c: Emitted(tuple(ids), done) for c, (ids, done) in (emitted or {}).items()}
    sampling = SamplingParameters(**parameters)
    return Job(
        request_id, attempt, phase, tuple(prompt), sampling, known, page_hashes(prompt, tenant), kv
    )


async def finished(sink, request_id="r1", choices=1):
    await until(
        lambda: all(sink.finish(request_id, c) for c in range(choices)),
        f"the end of {request_id}",
        WITHIN_S,
    )


def bytes_of(text):
    """The tiny model's ids of an ASCII text: specials first, then bytes in the order of their
    stand-ins, of which printable ASCII comes first."""
    return [{" ": 228, "\n": 206}.get(c, ord(c) - 25) for c in text]
