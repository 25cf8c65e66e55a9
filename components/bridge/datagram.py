"""The datagram of seed 0 (ELRAR): one JSON object of eight fields, read strictly, and written.

Whatever arrives on an open UDP port is somebody's guess at the format, or an attack. Every field
has a type and a range; a boolean is no number, NaN and infinity are no figures. Fields that we do
not know are tolerated, so that a newer sender is heard.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

Mode = Literal["latency_optimized", "balanced", "throughput_optimized"]

NAME_BYTES_MAX: Final = 256
COUNT_MAX: Final = 2**40
#: The largest integer that every JSON reader keeps exact.
TIMESTAMP_MAX_MS: Final = 2**53
LATENCY_MAX_MS: Final = 1e9
CAPACITY_MAX_TOKENS_PER_S: Final = 1e12

#: Why a datagram was refused. For programs: counters are named after these.
Refusal = Literal["not_json", "not_an_object", "field_missing", "wrong_type", "out_of_range"]


class BadDatagram(ValueError):
    """The datagram is not a state: count it under ``reason`` and drop it."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason: Final[Refusal] = reason


@dataclass(frozen=True, slots=True)
class Datagram:
    """The eight fields as read, and how many there were besides."""

    engine_id: str
    timestamp_ms: int
    latency_pred_ms: float
    scheduling_mode: Mode
    pending_tokens_total: int
    kv_cache_free_blocks: int
    kv_cache_total_blocks: int
    engine_capacity: float
    unknown_fields: int = 0

    @property
    def is_heartbeat(self) -> bool:
        """Has it the values with which the seed's agent says that it has nothing to say?"""
        return (
            self.pending_tokens_total == 0
            and self.latency_pred_ms == 0.0
            and self.engine_capacity == 0.0
            and self.kv_cache_free_blocks == self.kv_cache_total_blocks == -1
            and self.scheduling_mode == "latency_optimized"
        )


_FIELDS: Final = tuple(Datagram.__dataclass_fields__)[:8]


def read(data: bytes) -> Datagram:
    """The state in ``data``; raises ``BadDatagram`` whatever the bytes are."""
    try:
        # orjson refuses NaN, Infinity, invalid UTF-8 and deep nesting.
        values = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadDatagram("not_json") from None
    if type(values) is not dict:
        raise BadDatagram("not_an_object")
    if any(name not in values for name in _FIELDS):
        raise BadDatagram("field_missing")
    return Datagram(
        engine_id=_name(values["engine_id"]),
        timestamp_ms=_whole(values["timestamp_ms"], 0, TIMESTAMP_MAX_MS),
        latency_pred_ms=_number(values["latency_pred_ms"], LATENCY_MAX_MS),
        scheduling_mode=_mode(values["scheduling_mode"]),
        pending_tokens_total=_whole(values["pending_tokens_total"], 0, COUNT_MAX),
        kv_cache_free_blocks=_whole(values["kv_cache_free_blocks"], -1, COUNT_MAX),
        kv_cache_total_blocks=_whole(values["kv_cache_total_blocks"], -1, COUNT_MAX),
        engine_capacity=_number(values["engine_capacity"], CAPACITY_MAX_TOKENS_PER_S),
        unknown_fields=len(values) - len(_FIELDS),
    )


def test_datagram(engine_id: str, now_ms: int, **fields: Any) -> bytes:
    """The seed's test datagram as bytes: a busy engine, now; ``fields`` replace or add to it."""
    state: dict[str, Any] = {
        "engine_id": engine_id,
        "timestamp_ms": now_ms,
        "latency_pred_ms": 10.5,
        "scheduling_mode": "latency_optimized",
        "pending_tokens_total": 100,
        "kv_cache_free_blocks": 1000,
        "kv_cache_total_blocks": 2000,
        "engine_capacity": 50_000.0,
    }
    return orjson.dumps({**state, **fields})


def _name(value: Any) -> str:
    if type(value) is not str:
        raise BadDatagram("wrong_type")
    if not value.isprintable() or not 0 < len(value.encode()) <= NAME_BYTES_MAX:
        raise BadDatagram("out_of_range")
    return value


def _mode(value: Any) -> Mode:
    if type(value) is not str:
        raise BadDatagram("wrong_type")
    match value:
        case "latency_optimized" | "balanced" | "throughput_optimized":
            return value
        case _:
            raise BadDatagram("out_of_range")


def _whole(value: Any, least: int, most: int) -> int:
    # type() and not isinstance(): True is no number.
    if type(value) is not int:
        raise BadDatagram("wrong_type")
    if not least <= value <= most:
        raise BadDatagram("out_of_range")
    return value


def _number(value: Any, most: float) -> float:
    """A figure from 0 to ``most``; a whole number stands for its float."""
    if type(value) not in {int, float}:
        raise BadDatagram("wrong_type")
    figure = float(value)
    if not math.isfinite(figure) or not 0.0 <= figure <= most:
        raise BadDatagram("out_of_range")
    return figure
