"""`make show-main-job`: one command serves a chat through the bus."""

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.show import clean_clone, deaths, http_api, sockets, state, trace_run
from tests.show.proof import Proof, show

PROOFS: Final = (
    Proof(
        "clone",
        "On a clean clone `make up` prints ready, twice, and the README's curl streams a chat",
        "first < 60 s after downloads, second < 15 s, a stream that ends with [DONE]",
        clean_clone.up_twice_and_curl,
        fault="worker_starts_slowly",
        about_s=150,
    ),
    Proof(
        "openai",
        "The official openai client, sync and async, does chat and completions, streamed and not",
        "10 of 10 calls whole, with usage",
        http_api.official_client,
        fault="usage_is_off_by_one",
        about_s=15,
    ),
    Proof(
        "sockets",
        "Only NATS: a process's sockets are its NATS connection, HTTP for the gateway, UDP for "
        "the bridge",
        "0 others",
        sockets.only_nats,
        fault="scheduler_opens_a_socket",
        about_s=15,
    ),
    Proof(
        "trace",
        "500 requests of the Azure conversation trace at 4/s (Llama-3-8B on H100, speed 1, "
        "1 prefill + 1 decode)",
        "0 errors; E2E mean, median and p90 within 10 % of the model",
        trace_run.end_to_end,
        fault="engine_is_a_quarter_slower",
        about_s=160,
    ),
    Proof(
        "steps",
        "REQUESTS holds accepted, scheduled, routed, dispatched, handed_over, first_token, "
        "finished for each, under one trace id",
        "500 of 500",
        trace_run.every_step,
        fault="router_forgets_a_step",
        about_s=5,
    ),
    Proof(
        "handoff",
        "P killed between OFFER and READY: the requests complete, all leases return to zero",
        "all exact, 0 leases left",
        deaths.kill_prefill_in_handoff,
        fault="decode_never_recomputes",
        about_s=30,
    ),
    Proof(
        "fencing",
        "SIGSTOP a worker mid-stream, a new attempt finishes the stream, SIGCONT: late tokens "
        "are dropped",
        "all exact, late tokens > 0",
        deaths.freeze_a_worker,
        fault="gateway_does_not_fence",
        about_s=25,
    ),
    Proof(
        "kills",
        "SIGKILL scheduler, router, registry, one worker, each while at least 20 requests run "
        "and 20 wait",
        "every request finishes with exact tokens",
        deaths.kill_each,
        fault="continuation_forgets_what_was_emitted",
        about_s=90,
    ),
    Proof(
        "replay",
        "The journals of the trace run and of the run with kills, replayed from a snapshot, give "
        "every decision bit for bit",
        "all lives exact; outcomes without an entry named; a changed input shows",
        state.replay_of_a_run,
        fault="router_hidden_randomness",
        about_s=30,
    ),
    Proof(
        "datagram",
        "The seed's test datagram shows up in ENGINE_STATE and `switchyard status`",
        "once in each, values right",
        state.datagram,
        fault="bridge_swaps_two_fields",
        about_s=12,
    ),
    Proof(
        "input",
        "Bad input gets OpenAI-shaped 4xx with flat memory; no 5xx, no hang",
        "every case its status, memory +40 MB at most",
        http_api.bad_input,
        fault="gateway_reads_whole_bodies",
        about_s=30,
    ),
    Proof(
        "permissions",
        "The broker denies what the catalogue does not allow, and nothing else",
        "0 let through, 0 wrongly denied",
        state.permissions,
        fault="workers_may_publish_anything",
        about_s=15,
    ),
    Proof(
        "tests",
        "`make test` passes twice in a row on a clean clone outside this tree, with a real "
        "nats-server",
        "exit 0, twice",
        clean_clone.tests_twice,
        fault="router_hidden_randomness",
        about_s=420,
    ),
)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="show-") as folder:
        return show("show-main-job", PROOFS, Path(folder), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
