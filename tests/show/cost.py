"""What a handoff costs, ours beside vLLM's own ways on the same prompts (tests/bench)."""

import json
from statistics import geometric_mean
from typing import Any, Final

from tests.show.proof import Figure, Run, Skip, Void
from tests.show.python import python

REPEATS: Final = 12


async def of_a_handoff(run: Run) -> Figure:
    """From the prompt's arrival at P to D's first token, one prompt at a time."""
    rows = await _measure(run)
    kinds = {row["connector"] for row in rows}
    if "nixl" not in kinds:
        raise Skip("no NIXL in this environment")
    alone = {(r["tokens"], r["connector"]): r for r in rows if r["together"] == 1}
    lengths = sorted({tokens for tokens, _ in alone})

    def ratio(other: str, field: str) -> float:
        return geometric_mean(alone[n, "ours"][field] / alone[n, other][field] for n in lengths)

    ahead = all(alone[n, "ours"]["whole_ms"] < alone[n, "nixl"]["whole_ms"] for n in lengths)
    most = max(lengths)
    moved = ", ".join(
        f"{kind} {alone[most, kind]['transfer_ms']:.1f} ms {alone[most, kind]['gb_per_s']:.2f} GB/s"
        for kind in ("ours", "nixl", "files")
    )
    text = (
        f"whole handoff: {ratio('nixl', 'whole_ms'):.2f} of NIXL's time, "
        f"{ratio('files', 'whole_ms'):.2f} of files'; "
        f"{alone[most, 'ours']['bytes'] / 2**20:.2f} MiB: {moved}"
    )
    return Figure(text, ahead, {"rows": rows})


async def _measure(run: Run) -> list[dict[str, Any]]:
    repeats = "3" if run.quick else str(REPEATS)
    words = ("-m", "tests.bench.handoff_cost", "--json", "--repeats", repeats)
    code, out, err = await python(*words, fault=run.fault)
    if code:
        raise Void(f"the bench ended with {code}: {err[-300:]}")
    rows: list[dict[str, Any]] = json.loads(out.strip().splitlines()[-1])["rows"]
    return rows
