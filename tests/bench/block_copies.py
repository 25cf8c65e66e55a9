"""What it costs to gather KV blocks on a GPU: `python -m tests.bench.block_copies [--json]`.

A link moves contiguous chunks; blocks lie about in 32 layers' caches. Gathering and scattering must
not be slower than what the link moves (NVLink: 450 GB/s one way; PCIe 5 x16: 64 GB/s; 400 Gb/s
network: 50 GB/s). Measured beside a plain copy on the same card, both in bytes moved (not read plus
written), median of 30 after 5 to warm up. Shapes are those of an 8B model: 32 layers, blocks of 16
tokens, 8 KV heads of 128, two bytes each.
"""

import argparse
import json
import statistics
import sys

import torch  # type: ignore[import-not-found]

from components.worker.vllm.connector.blocks import KvBlocks

LAYERS, TOKENS, HEADS, WIDTH = 32, 16, 8, 128
BLOCKS = 1024
CHUNKS_MIB = (4, 16, 64, 256)
WARM, ROUNDS = 5, 30


def median_ms(work):
    """Of the GPU's own clock, whatever the host does meanwhile."""
    times = []
    for round_number in range(WARM + ROUNDS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        ended.synchronize()
        if round_number >= WARM:
            times.append(began.elapsed_time(ended))
    return statistics.median(times)


def measure(mib):
    shape = (BLOCKS, HEADS, TOKENS, 2 * WIDTH)
    kv = KvBlocks([torch.randn(shape, device="cuda").to(torch.bfloat16) for _ in range(LAYERS)])
    count = (mib << 20) // kv.block_bytes
    ids = torch.randperm(BLOCKS)[:count].tolist()
    chunk = kv.bytes(count * kv.block_bytes)
    other = torch.empty_like(chunk)
    ways = {
        "gather": lambda: kv.gather(ids, chunk),
        "scatter": lambda: kv.scatter(ids, chunk),
        "plain copy": lambda: other.copy_(chunk),
    }
    return {way: chunk.numel() / median_ms(work) / 1e6 for way, work in ways.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    as_json = parser.parse_args().json
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured", file=sys.stderr)
        return 1
    seen = {mib: measure(mib) for mib in CHUNKS_MIB}
    if as_json:
        print(json.dumps({"gpu": torch.cuda.get_device_name(), "gb_per_s": seen}))
        return 0
    print(f"{torch.cuda.get_device_name()}, GB/s of blocks moved")
    print(f"{'chunk':>8}" + "".join(f"{way:>12}" for way in seen[CHUNKS_MIB[0]]))
    for mib, ways in seen.items():
        print(f"{mib:>4} MiB" + "".join(f"{rate:>12.0f}" for rate in ways.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
