"""One real engine with our connector, in a process of its own, asked over NATS.

    python -m tests.engine.connector.agent NAME MODEL_DIR NATS_URL JSON

JSON: ``policy``, ``module`` (a connector of the test's), ``connector`` (ConnectorConfig's fields),
or ``transfer`` (KVTransferConfig's, for another connector), and ``engine`` (AsyncEngineArgs').
Subjects: ``test.<name>.gen|free|stats``; ``test.ready.<name>`` once it runs. It ends when its
standard input is closed.
"""

import asyncio
import json
import os
import sys
import time

os.environ.update(
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
)

import nats
from prometheus_client import REGISTRY  # type: ignore[import-not-found]
from vllm import SamplingParams  # type: ignore[import-not-found]
from vllm.config import KVTransferConfig  # type: ignore[import-not-found]
from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]
from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]

from components.worker.vllm.connector.config import (
    ConnectorConfig,
    transfer_arguments,
)

STATS = ("kv_cache_usage_perc", "external_prefix_cache", "prefix_cache", "prompt_tokens_by_source")


def start(name, model, url, options):
    arguments = {
        "dtype": "float32",
        "max_model_len": 1536,
        "enforce_eager": True,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 64 << 20,
        "block_size": 32,
        "max_num_batched_tokens": 256,
        "seed": 0,
        "disable_log_stats": False,
        **options.get("engine", {}),
    }
    transfer = KVTransferConfig(**options["transfer"]) if "transfer" in options else None
    if options.get("connector") is not None:
        config = ConnectorConfig(
            worker=name, epoch=int(time.time() * 1000), nats_url=url, **options["connector"]
        )
        fields = transfer_arguments(config, policy=options.get("policy", "recompute"))
        if "module" in options:
            fields["kv_connector_module_path"] = options["module"]
        transfer = KVTransferConfig(**fields)
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=model, kv_transfer_config=transfer, **arguments)
    )


def stats():
    return {
        f"{s.name} {s.labels.get('source', '')}".strip(): s.value
        for family in REGISTRY.collect()
        for s in family.samples
        if s.name.startswith("vllm:") and any(want in s.name for want in STATS)
    }


async def generate(engine, ask):
    sampling = SamplingParams(
        temperature=0,
        max_tokens=ask["max_tokens"],
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={"kv_transfer_params": ask["kv"]} if ask.get("kv") else None,
    )
    started = time.monotonic()
    prompt = {"prompt_token_ids": ask["prompt"]}
    (out,) = [o async for o in engine.generate(prompt, sampling, ask["id"])]
    return {
        "ids": list(out.outputs[0].token_ids),
        "finish": out.outputs[0].finish_reason,
        "kv": out.kv_transfer_params,
        "cached": out.num_cached_tokens,
        "ms": (time.monotonic() - started) * 1e3,
    }


async def serve(name, model, url, options):
    engine = start(name, model, url, options)
    client = await nats.connect(url)
    running = set()

    def spawn(work):
        task = asyncio.create_task(work)
        running.add(task)
        task.add_done_callback(running.discard)

    async def answer(message, work):
        try:
            reply = await work
        except Exception as error:  # noqa: BLE001  (the test sees it)
            reply = {"error": f"{type(error).__name__}: {error}"}
        await client.publish(message.reply, json.dumps(reply).encode())

    async def on_gen(message):
        spawn(answer(message, generate(engine, json.loads(message.data))))

    async def on_free(message):
        spawn(answer(message, engine.reset_prefix_cache()))

    async def on_abort(message):
        await engine.abort(message.data.decode())
        await message.respond(b"{}")

    async def on_stats(message):
        await message.respond(json.dumps(stats()).encode())

    await client.subscribe(f"test.{name}.gen", cb=on_gen)
    await client.subscribe(f"test.{name}.free", cb=on_free)
    await client.subscribe(f"test.{name}.abort", cb=on_abort)
    await client.subscribe(f"test.{name}.stats", cb=on_stats)
    await client.flush()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await client.close()
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])))
