"""Many simulated engines that send their states by UDP, at a pace: a process of its own.

    python -m tests.show.udp_sender PORT ENGINES RATE_PER_S SECONDS [KEY=VALUE...]

Each engine is a host of its own (127.0.1.1 and on). Prints how many datagrams the kernel took.
"""

import socket
import sys
import time

BURST_S = 0.005


def engines(port: int, count: int) -> list[tuple[socket.socket, bytes, bytes]]:
    """A connected socket per engine, and its datagram before and behind the timestamp."""
    made = []
    for number in range(count):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.bind((f"127.0.1.{number % 250 + 1}", 0))
        sender.connect(("127.0.0.1", port))
        head = b'{"engine_id":"http://10.0.0.%d:8000","timestamp_ms":' % number
        tail = (
            b',"latency_pred_ms":10.5,"scheduling_mode":"balanced","pending_tokens_total":%d,'
            b'"kv_cache_free_blocks":1000,"kv_cache_total_blocks":2000,"engine_capacity":50000.0}'
        ) % number
        made.append((sender, head, tail))
    return made


def send(port: int, count: int, rate_per_s: float, seconds: float) -> tuple[int, float]:
    """Bursts every 5 ms, each engine in turn; when late, as fast as it goes. Sent, and in what."""
    senders = engines(port, count)
    per_burst = round(rate_per_s * BURST_S)
    began_s = time.perf_counter()
    sent = turn = 0
    for burst in range(round(seconds / BURST_S)):
        stamp = b"%d" % (time.time_ns() // 1_000_000)
        for _ in range(per_burst):
            sender, head, tail = senders[turn]
            turn = turn + 1 if turn + 1 < count else 0
            sender.send(head + stamp + tail)
        sent += per_burst
        wait_s = began_s + (burst + 1) * BURST_S - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        elif -wait_s > seconds:
            break  # this machine cannot send so fast
    return sent, time.perf_counter() - began_s


if __name__ == "__main__":
    port, count, rate, seconds = sys.argv[1:5]
    sent, took_s = send(int(port), int(count), float(rate), float(seconds))
    print(sent, f"{took_s:.3f}")
