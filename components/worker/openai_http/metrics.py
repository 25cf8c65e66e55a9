"""What a server's ``/metrics`` says of its load, under the names of old and new vLLM. Pure."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_SAMPLE: Final = re.compile(
    r"(?P<name>vllm:\w+)(?:\{(?P<labels>[^\n]*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?"
)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

#: Sums over all data-parallel ranks; Prometheus clients of some versions add ``_total``.
_SUMS: Final = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:generation_tokens": "generated_tokens",
    "vllm:prompt_tokens": "prompt_tokens",
    "vllm:prefix_cache_hits": "prefix_hit_tokens",
    "vllm:gpu_prefix_cache_hits": "prefix_hit_tokens",
    "vllm:prefix_cache_queries": "prefix_query_tokens",
    "vllm:gpu_prefix_cache_queries": "prefix_query_tokens",
}
_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_CONFIG: Final = "vllm:cache_config_info"


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """One look at a server. ``kv_usage`` is 0 to 1; tokens are sums since its start.

    ``blocks`` of ``block_tokens`` tokens; 0 where it does not say. ``is_vllm``: it has metrics of
    vLLM at all.
    """

    is_vllm: bool = False
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    blocks: int = 0
    block_tokens: int = 0


def parse_metrics(text: str) -> ServerLoad:
    """What can be read is taken; lines that are no samples of ours change nothing."""
    sums: dict[str, int] = {}
    usages: list[float] = []
    blocks = block_tokens = 0
    is_vllm = False
    for name, labels, value in _samples(text):
        is_vllm = True
        if name in _USAGE:
            usages.append(min(1.0, max(0.0, value)))
        elif name == _CONFIG:
            blocks += _whole(labels.get("num_gpu_blocks", ""))
            block_tokens = _whole(labels.get("block_size", ""))
        elif field := _SUMS.get(name.removesuffix("_total")):
            sums[field] = sums.get(field, 0) + max(0, int(value))
    usage = sum(usages) / len(usages) if usages else 0.0
    return ServerLoad(
        is_vllm=is_vllm, kv_usage=usage, blocks=blocks, block_tokens=block_tokens, **sums
    )


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        found = _SAMPLE.fullmatch(line.rstrip()) if line.startswith("vllm:") else None
        if found is None:
            continue
        try:
            value = float(found["value"])
        except ValueError:
            continue
        if math.isfinite(value):
            labels = found["labels"] if found["name"] == _CONFIG else None
            yield found["name"], dict(_LABEL.findall(labels or "")), value


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else 0
