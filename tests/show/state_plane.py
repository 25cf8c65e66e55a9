"""`make show-state`: the state plane, and a past that can be replayed."""

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.show import clients, datagram_load, datagrams, history_faults, nvllm, time_travel
from tests.show.proof import Proof, show

PROOFS: Final[tuple[Proof, ...]] = (
    Proof(
        "corpus",
        "Every kind of datagram (each field wrong in each way, NaN, deep nesting, 64 kB, cut short,"
        " twice, out of order, of 1970, of the future, forged, replayed) at a running bridge",
        "each in its counter, every latest state right, no exception",
        datagrams.every_kind,
        fault="bridge_takes_booleans_for_numbers",
        about_s=10,
    ),
    Proof(
        "udp_load",
        "20,000 datagrams/s for 30 s from 200 engines with the bridge on one core; then five times "
        "that rate; then 20,000/s again",
        "sent = stored + kernel drops + rejects; none dropped or rejected at 20,000/s, p99 to a "
        "subscriber under 20 ms, before and after the flood",
        datagram_load.load,
        fault="bridge_is_slow",
        about_s=60,
    ),
    Proof(
        "nvllm",
        "The older node service's documented calls, made literally: login, register, update, "
        "delete, get, status, all; missing, wrong and forged tokens, unknown ids, wrong methods",
        "each answers as its document promises, envelope field by field",
        nvllm.documented_calls,
        fault="update_forgets_what_was_not_sent",
        about_s=10,
    ),
    Proof(
        "history_kill",
        "nats-server killed three times while requests run, the last time an engine with it",
        "no request failed; exactly what is missing in the streams is reported, and whose last "
        "words are unknown",
        history_faults.kill_nats,
        fault="auditor_keeps_gaps_to_itself",
        about_s=40,
    ),
    Proof(
        "history_full",
        "The disk under the streams fills to the last byte while requests run, and grows later",
        "no request failed; said to be not stored within 10 s; stored again without a human; "
        "exactly what is missing is reported",
        history_faults.full_disk,
        fault="auditor_keeps_gaps_to_itself",
        about_s=60,
    ),
    Proof(
        "replay",
        "2,000 requests recorded, exported, and run again elsewhere without a server; then by "
        "another policy",
        "every decision bit for bit; at least 50,000 journal entries/s of one core",
        time_travel.replay_elsewhere,
        fault="router_hidden_randomness",
        about_s=40,
    ),
    Proof(
        "explain",
        "Any of the last 100,000 requests is explained: each candidate, its terms, the state it "
        "was judged on, the best alternative's price",
        "all whole, each in under 200 ms",
        time_travel.explain_any,
        fault="explain_reads_everything",
        about_s=60,
    ),
    Proof(
        "instant",
        "The fleet at any instant of an hour, by the payload's clock: who lived, what engines had "
        "said, what waited, what ran",
        "all as they were, each in under 1 s",
        time_travel.any_instant,
        fault="instants_are_looked_for_one_by_one",
        about_s=60,
    ),
    Proof(
        "nats_client",
        "A client on NATS with a tenant's key gets what HTTP gives, streamed and in one, and the "
        "broker lets it do nothing else",
        "200 of 200 equal, every attempt judged right, a stream that is left ends within 1 s",
        clients.nats_client,
        fault="tenants_share_their_inboxes",
        about_s=20,
    ),
)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="show-") as folder:
        return show("show-state", PROOFS, Path(folder), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
