"""What a datagram costs the bridge: `python -m tests.bench.datagrams [--json] [--datagrams N]`.

Microseconds of CPU per datagram, the best of five passes, and how many times a bare `json.loads` of
the same datagrams in the same passes that is. From bytes to the event, without socket and bus.
"""

import argparse
import json
from collections.abc import Callable
from time import process_time
from typing import Final

from components.bridge.core import BridgeCore
from components.bridge.datagram import read, test_datagram
from components.bridge.trust import Trust
from components.bridge.windows import Windows
from components.domain.signed_frame import sign, verify
from tests.bench.printed import printed

ENGINES: Final = 200
PASSES: Final = 5
WALL_MS: Final = 1_795_000_000_000
KEYS: Final = {"k1": bytes(range(32))}
HOST: Final = "10.0.0.7"

Pass = Callable[[], float]


def plain(count: int) -> list[bytes]:
    """States of 200 engines in turn, each one newer than the one before."""
    return [
        test_datagram(f"http://10.0.0.{n % ENGINES}:8000", WALL_MS + n, pending_tokens_total=n)
        for n in range(count)
    ]


def signed(payloads: list[bytes]) -> list[bytes]:
    return [
        sign(payload, key_id="k1", key=KEYS["k1"], epoch=7, seq=n, sent_ms=WALL_MS)
        for n, payload in enumerate(payloads, start=1)
    ]


def each(work: Callable[[bytes], object], datagrams: list[bytes]) -> Pass:
    """``work`` on one after the other; seconds of CPU per datagram."""

    def once() -> float:
        began_s = process_time()
        for data in datagrams:
            work(data)
        return (process_time() - began_s) / len(datagrams)

    return once


def core_of(trust: Trust, *, per_s: float) -> BridgeCore:
    burst = int(per_s)
    return BridgeCore(
        source_per_s=per_s, source_burst=burst, total_per_s=per_s, total_burst=burst, trust=trust
    )


def through(trust: Callable[[], Trust], datagrams: list[bytes]) -> Pass:
    """A fresh core takes them all; fails where one of them made no event."""

    def once() -> float:
        core = core_of(trust(), per_s=1e9)
        events = 0
        began_s = process_time()
        for data in datagrams:
            events += core.on_datagram(data, HOST, 5000, 1.0, WALL_MS) is not None
        took_s = process_time() - began_s
        assert events == len(datagrams), core.totals
        return took_s / events

    return once


def flooded(datagrams: list[bytes]) -> Pass:
    """All but the first come too fast."""

    def once() -> float:
        core = core_of(legacy(), per_s=1.0)
        began_s = process_time()
        for data in datagrams:
            core.on_datagram(data, HOST, 5000, 1.0, WALL_MS)
        took_s = process_time() - began_s
        assert core.totals["rate_limited_total"] == len(datagrams) - 1
        return took_s / len(datagrams)

    return once


def legacy() -> Trust:
    return Trust("legacy", {}, Windows(4096, 30_000))


def required() -> Trust:
    return Trust("required", KEYS, Windows(4096, 30_000))


def measure(count: int) -> list[dict[str, float | str]]:
    """One row per case: what, microseconds, and against `json.loads`."""
    payloads = plain(count)
    frames = signed(payloads)
    cases: dict[str, Pass] = {
        "json.loads": each(json.loads, payloads),
        "plain: read strictly": each(read, payloads),
        "plain: bytes to event": through(legacy, payloads),
        "signed: verify": each(lambda data: verify(data, KEYS), frames),
        "signed: bytes to event": through(required, frames),
        "one of a flood, refused by rate": flooded(payloads),
    }
    # Pass by pass and not case by case: a slow moment of the machine is everybody's.
    passes = [{what: once() for what, once in cases.items()} for _ in range(PASSES)]
    best = {what: min(one[what] for one in passes) for what in cases}
    return [
        {"what": what, "us": 1e6 * seconds, "times_json": seconds / best["json.loads"]}
        for what, seconds in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--datagrams", type=int, default=20_000, help="how many per pass")
    arguments = parser.parse_args()
    rows = measure(arguments.datagrams)
    printed(
        rows,
        ("a datagram", "us", "x json.loads"),
        lambda row: (row["what"], f"{row['us']:.2f}", f"{row['times_json']:.1f}"),
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
