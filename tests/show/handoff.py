"""`make show-handoff`: real vLLM engines that hand the KV cache over."""

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.show import cost, real_api, transfers
from tests.show.proof import Proof, show
from tests.show.suites import suite

PROOFS: Final = (
    Proof(
        "exact",
        "64 prompts (5 to 1,500 tokens, 16 at a time, chunked prefill) through gateway -> P -> D: "
        "ids equal to one engine's greedy run, all prompt tokens really loaded",
        "64 of 64, every token",
        transfers.exact,
        fault="kv_is_noise",
        about_s=150,
    ),
    Proof(
        "cancel",
        "A streamed request that its client leaves frees its blocks on P and D (seen in the block "
        "pools)",
        "under 100 ms each time",
        transfers.left_alone,
        fault="gateway_ignores_who_leaves",
        about_s=90,
    ),
    Proof(
        "faults",
        "170 aborts and link faults at random phases under load: no hung request, no leaked block, "
        "no link left broken, greedy outputs exact",
        "all exact, 0 hung, pools whole, every token over the links afterwards",
        transfers.aborts_and_link_faults,
        fault="ranks_forget_what_they_hold",
        about_s=180,
    ),
    Proof(
        "kills",
        "12 SIGKILLs (P after prefill, P mid-transfer, D before and during decode) under load: the "
        "same promises",
        "all exact, 0 hung, pools whole, every token over the links afterwards",
        transfers.kills,
        fault="kv_is_noise",
        about_s=480,
    ),
    Proof(
        "cost",
        "What a handoff costs beside NIXL and vLLM's Example connector (files), on the same "
        "prompts in one run: from the prompt at P to the first token at D, bytes, ms, GB/s",
        "below NIXL at every length; files: shown, and why in tests/bench/handoff_cost.py",
        cost.of_a_handoff,
        fault="transfers_are_slow",
        about_s=120,
    ),
    Proof(
        "openai",
        "The official client through real vLLM, prefill and decode apart: tools (named, required, "
        "found in the text), JSON schema, pattern, each whole and streamed; a bad schema is a 400",
        "every call as asked for",
        real_api.tools_and_schemas,
        fault="gateway_forgets_constraints",
        about_s=90,
    ),
    Proof(
        "http",
        "Real vLLM behind the HTTP agent gives the tokens of the engine in process",
        "all pass",
        suite("tests/engine/test_http_engine.py", at_least=2),
        fault="http_engine_slips_a_token",
        about_s=150,
    ),
    Proof(
        "sglang",
        "The SGLang agent against a server that checks every field",
        "all pass",
        suite("tests/integration/worker/test_sglang_conformance.py", at_least=30),
        fault="sglang_rooms_differ",
        about_s=60,
    ),
    Proof(
        "nccl",
        "What one GPU allows of NCCL links (two: whole handoffs); skipped where there is none",
        "all pass",
        suite("tests/gpu", at_least=4),
        fault="kv_is_noise",
        about_s=60,
    ),
)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="show-") as folder:
        return show("show-handoff", PROOFS, Path(folder), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
