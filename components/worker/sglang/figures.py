"""What servers say of themselves, as what an agent needs. Pure.

``GET /get_server_info`` gives the server's arguments, its scheduler's figures, and in
``internal_states`` one entry per data-parallel rank. All of it differs between versions, so
whatever is missing or of another type counts as unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """One server; None where it does not say. Sums over its ranks.

    ``text_is_delta``: chunks of its streams hold the new text only.
    """

    context_tokens_max: int | None = None
    kv_tokens: int | None = None
    seqs_max: int | None = None
    tokens_per_s: float = 0.0
    text_is_delta: bool | None = None
    version: str = ""


UNKNOWN = Figures()


def figures_of(info: Any) -> Figures:
    """From the JSON of ``/get_server_info``."""
    if not isinstance(info, Mapping):
        return UNKNOWN
    states = info.get("internal_states")
    ranks = [s for s in states if isinstance(s, Mapping)] if isinstance(states, list) else []
    return Figures(
        context_tokens_max=_positive(info.get("context_length"))
        or _positive(info.get("max_req_input_len")),
        kv_tokens=_kv_tokens(info, ranks),
        seqs_max=_sum(ranks, "effective_max_running_requests_per_dp")
        or _positive(info.get("max_running_requests")),
        tokens_per_s=sum(_number(rank.get("last_gen_throughput")) for rank in ranks),
        text_is_delta=_text_is_delta(info),
        version=str(info.get("version", "")),
    )


def _kv_tokens(info: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> int | None:
    memories = [
        rank["memory_usage"] for rank in ranks if isinstance(rank.get("memory_usage"), dict)
    ]
    inside = _sum(memories, "token_capacity")
    if inside:
        return inside
    per_rank = _positive(info.get("max_total_num_tokens"))
    return per_rank * max(1, len(ranks)) if per_rank else None


def _text_is_delta(info: Mapping[str, Any]) -> bool | None:
    """Servers that know only the older ``stream_output`` give new ids with all of the text."""
    if "incremental_streaming_output" in info:
        return info["incremental_streaming_output"] is True
    return False if "stream_output" in info else None


def _sum(tables: Sequence[Mapping[str, Any]], name: str) -> int | None:
    values = [_positive(table.get(name)) for table in tables]
    return sum(v or 0 for v in values) or None


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return max(0.0, float(value)) if is_number else 0.0


def whole(figures: Sequence[Figures | None], name: str) -> int | None:
    """The sum of one figure over servers, or None when one of them does not say."""
    values = [None if f is None else getattr(f, name) for f in figures]
    known = [v for v in values if v is not None]
    return sum(known) if known and len(known) == len(values) else None
