"""How long an engine's step takes: the coefficient sets that the engine model runs on.

Two kinds. A `StepTimeProfile` is a model on a GPU; one step over `T` tokens, of which `B` belong to
decoding sequences with `ctx` tokens of context in all, takes

    t_step = max(w0 + w1*T, p0 + p1*T)                  linear layers: bound by memory or by compute
           + q * sum over prefill chunks (c*past + c*c/2)            c = chunk, past = tokens before
           + [B > 0] * (d0 + ds*B + dc*ctx)                                        decode attention
           + host

A `ConstantProfile` has no steps to share: every request has its first token after `ttft_ms` and the
next ones every `itl_ms`, however many run. Where the coefficients come from: data/README.md.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

GIGA = 1e9


class UnknownProfileError(ValueError):
    """No profile has this name, or its parameters cannot be read; the message says what exists."""


@dataclass(frozen=True, slots=True)
class StepTimeProfile:
    """Coefficients of the formula above, and the size of the model's KV cache.

    `linear_table_ms`, where given, replaces the two branches of the linear layers by points
    (tokens, ms) with straight lines between them. `host_ms` is an assumption (asynchronous
    scheduling), not a measurement. `kv_tokens` is what fits beside the weights.
    """

    name: str
    w0_ms: float
    w1_ms_per_token: float
    p0_ms: float
    p1_ms_per_token: float
    q_ms_per_pair: float
    d0_ms: float
    ds_ms_per_seq: float
    dc_ms_per_token: float
    kv_bytes_per_token: int
    kv_tokens: int
    host_ms: float = 1.0
    linear_table_ms: tuple[tuple[int, float], ...] = ()

    def linear_ms(self, tokens: int) -> float:
        """Time of the linear layers over `tokens` tokens."""
        if self.linear_table_ms:
            return _interpolated(self.linear_table_ms, tokens)
        return max(
            self.w0_ms + self.w1_ms_per_token * tokens, self.p0_ms + self.p1_ms_per_token * tokens
        )

    def decode_attention_ms(self, decoding: int, context_tokens: int) -> float:
        """Time of decode attention for `decoding` sequences with `context_tokens` in all."""
        if not decoding:
            return 0.0
        return self.d0_ms + self.ds_ms_per_seq * decoding + self.dc_ms_per_token * context_tokens

    def step_ms(
        self,
        *,
        prefill_tokens: int = 0,
        prefill_pairs: float = 0.0,
        decoding: int = 0,
        context_tokens: int = 0,
    ) -> float:
        """Time of one step. `prefill_pairs` is the sum of c*past + c*c/2 over the chunks."""
        return (
            self.linear_ms(prefill_tokens + decoding)
            + self.q_ms_per_pair * prefill_pairs
            + self.decode_attention_ms(decoding, context_tokens)
            + self.host_ms
        )

    def prefill_ms(self, new_tokens: int, step_tokens_max: int, cached_tokens: int = 0) -> float:
        """Time to prefill `new_tokens` after `cached_tokens` on an otherwise idle engine."""
        full, rest = divmod(new_tokens, step_tokens_max)
        linear_ms = full * self.linear_ms(step_tokens_max) + (self.linear_ms(rest) if rest else 0.0)
        steps = full + (rest > 0)
        pairs = new_tokens * (cached_tokens + new_tokens / 2)
        return steps * self.host_ms + linear_ms + self.q_ms_per_pair * pairs


@dataclass(frozen=True, slots=True)
class ConstantProfile:
    """First token `ttft_ms` after admission, then one every `itl_ms`, whatever the load.

    With 0 a step takes no time at all: the engine is as fast as its caller.
    """

    name: str = "constant"
    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    kv_bytes_per_token: int = 131_072
    kv_tokens: int = 400_000

    def __post_init__(self) -> None:
        if self.ttft_ms < 0 or self.itl_ms < 0 or self.kv_tokens < 1 or self.kv_bytes_per_token < 0:
            raise UnknownProfileError(f"{self.name}: times and sizes must not be negative")


Profile = StepTimeProfile | ConstantProfile


def profile_named(text: str) -> Profile:
    """The profile that `text` names: `llama3-8b/tp1/h100`, or `constant:ttft_ms=50,itl_ms=10`.

    `...-table` takes the linear layers from the measured table where there is one (the fit is up to
    25 % too fast around 600 tokens a step). Parameters after a colon override fields of the
    profile, for example `llama3-8b/tp1/h100:kv_tokens=20000`. Raises UnknownProfileError.
    """
    name, _, parameters = text.partition(":")
    profile = _profiles().get(name)
    if profile is None:
        raise UnknownProfileError(f"no profile {name!r}; there are: {', '.join(profile_names())}")
    values = _parameters(profile, parameters)
    return replace(profile, name=text, **values) if values else profile


def profile_names() -> tuple[str, ...]:
    """Every name that `profile_named` knows, sorted."""
    return tuple(sorted(_profiles()))


def transfer_s(
    tokens: int, kv_bytes_per_token: int, bandwidth_gb_per_s: float, latency_ms: float = 0.0
) -> float:
    """Time to move the KV cache of `tokens` tokens over a link; 1 GB = 1e9 bytes."""
    return latency_ms / 1e3 + tokens * kv_bytes_per_token / (bandwidth_gb_per_s * GIGA)


def _interpolated(table: tuple[tuple[int, float], ...], tokens: int) -> float:
    """The table at `tokens`; before its first and after its last point the nearest line goes on."""
    right = bisect_right(table, tokens, key=lambda point: point[0])
    right = min(max(right, 1), len(table) - 1)
    (x0, y0), (x1, y1) = table[right - 1], table[right]
    return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)


@cache
def _profiles() -> dict[str, Profile]:
    text = resources.files(__package__).joinpath("data/step_time_coeffs.json").read_text("utf-8")
    data = json.loads(text)
    profiles: dict[str, Profile] = {"constant": ConstantProfile()}
    for name, row in data["profiles"].items():
        profiles[name] = StepTimeProfile(name=name, **row)
    for name, points in data["linear_tables_ms"].items():
        table = tuple((int(tokens), float(ms)) for tokens, ms in points)
        if not all(a < b for (a, _), (b, _) in pairwise(table)):
            raise ValueError(f"linear table of {name} is not in ascending order")
        row = data["profiles"][name]
        profiles[f"{name}-table"] = StepTimeProfile(
            name=f"{name}-table", linear_table_ms=table, **row
        )
    return profiles


def _parameters(profile: Profile, text: str) -> Mapping[str, Any]:
    fields = set(type(profile).__dataclass_fields__) - {"name", "linear_table_ms"}
    values: dict[str, float | int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in fields:
            raise UnknownProfileError(
                f"{profile.name} has no parameter {key!r}; there are: {', '.join(sorted(fields))}"
            )
        pattern = r"\d+" if key.startswith("kv_") else r"\d+(\.\d+)?"
        if not re.fullmatch(pattern, value):
            raise UnknownProfileError(f"{key}={value!r} is not a number of 0 or more")
        values[key] = int(value) if key.startswith("kv_") else float(value)
    return values
