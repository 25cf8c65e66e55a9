"""The generator keeps to its arrivals and tells the truth; the server here says exact bytes."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

from components.bench.driver import Generator, Load, run
from components.bench.prompts import IdPrompts
from components.bench.records import Record
from components.bench.target import BadTarget, Target
from components.domain.traces import Arrival

Answer = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(**fields: Any) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def piece(text: str) -> bytes:
    return chunk(event(choices=[{"index": 0, "text": text}]))


END = chunk(event(choices=[], usage=USAGE)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
GOOD = HEAD + piece("one ") + piece("two ") + piece("three") + END


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Target]:
    """A server that reads requests whole and lets ``answer`` write whatever it wants."""

    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                await answer(orjson.loads(await reader.readexactly(length)), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.create_task(converse(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1])
    for conversation in conversations:
        conversation.cancel()
    await asyncio.gather(*conversations, return_exceptions=True)
    await asyncio.sleep(0)  # one turn of the loop, in which transports let go of their sockets


def saying(data: bytes) -> Answer:
    async def answer(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


def load(target: Target, arrivals: list[Arrival], **changes: Any) -> Load:
    values: dict[str, Any] = {
        "target": target,
        "model": "m",
        "api": "completions",
        "arrivals": arrivals,
        "prompts": IdPrompts(1),
        "request_timeout_s": 5.0,
        "run_timeout_s": 20.0,
    }
    return Load(**{**values, **changes})


async def one(answer: Answer, **changes: Any) -> Record:
    async with serving(answer) as target:
        outcome = await Generator(load(target, [Arrival(0.0, 7, 3)], **changes)).run()
    (record,) = outcome.records
    return record


async def test_a_good_stream_gives_text_times_and_usage():
    record = await one(saying(GOOD))
    assert record.ok
    assert (record.pieces, record.output_tokens, record.prompt_tokens_seen) == (3, 3, 7)
    assert record.ttft_s is not None
    assert record.e2e_s is not None
    assert 0 < record.ttft_s <= record.e2e_s


async def test_the_request_asks_for_exact_lengths_and_usage():
    asked: list[dict[str, Any]] = []

    async def answer(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        asked.append(body)
        writer.write(GOOD)

    await one(answer)
    (body,) = asked
    assert len(body["prompt"]) == 7
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (3, True, True)
    assert body["stream_options"] == {"include_usage": True}


async def test_a_role_without_text_is_no_first_token():
    first_text = asyncio.Event()

    async def answer(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}}
        writer.write(HEAD + chunk(event(choices=[role])))
        await writer.drain()
        await asyncio.sleep(0.05)  # the pause is what is measured
        first_text.set()
        word = {"index": 0, "delta": {"content": "word"}}
        writer.write(chunk(event(choices=[word])) + END)

    record = await one(answer)
    assert record.pieces == 1
    assert record.ttft_s is not None
    assert record.ttft_s >= 0.05


def closing(data: bytes) -> Answer:
    async def answer(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return answer


REFUSAL = orjson.dumps({"error": {"message": "too many", "code": "queue_full"}})
REFUSED = b"HTTP/1.1 429 X\r\ncontent-length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL)
NO_DONE = HEAD + piece("one") + b"0\r\n\r\n"
IN_STREAM = HEAD + piece("one") + chunk(event(error={"message": "x", "code": "no_worker"})) + END


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (saying(REFUSED), "http_429"),
        (closing(HEAD + piece("one")), "connection_lost"),
        (saying(NO_DONE), "cut_stream"),
        (saying(IN_STREAM), "stream_no_worker"),
        (saying(HEAD + chunk(b"data: {oops\n\n")), "bad_stream"),
        (saying(b"SMTP ready\r\n\r\n"), "bad_http"),
    ],
    ids=["refused", "cut", "no_done", "error_event", "no_json", "no_http"],
)  # fmt: skip
async def test_every_way_to_fail_has_its_code(answer: Answer, code: str):
    record = await one(answer)
    assert record.error == code
    assert not record.ok


async def test_a_refusal_is_told_in_the_servers_words():
    assert (await one(saying(REFUSED))).error_text == "too many"


async def test_a_silent_server_ends_by_the_requests_timeout():
    record = await one(saying(HEAD), request_timeout_s=0.1)
    assert record.error == "timeout"


async def test_the_whole_run_is_bounded():
    async with serving(saying(HEAD)) as target:
        arrivals = [Arrival(0.0, 7, 3), Arrival(60.0, 7, 3)]
        outcome = await Generator(load(target, arrivals, run_timeout_s=0.2)).run()
    assert [record.error for record in outcome.records] == ["run_timeout"]
    assert outcome.generator["unsent"] == 1


async def test_nobody_at_the_address_is_an_error_and_no_hang():
    async with serving(saying(GOOD)) as target:
        pass
    outcome = await Generator(load(target, [Arrival(0.0, 7, 3)])).run()
    assert outcome.records[0].error == "cannot_connect"


async def test_an_open_loop_sends_at_the_arrivals_while_earlier_ones_still_run():
    asked, release = 0, asyncio.Event()
    all_asked = asyncio.Event()

    async def answer(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            all_asked.set()
        await release.wait()
        writer.write(GOOD)

    async with serving(answer) as target:
        arrivals = [Arrival(at_s, 7, 3) for at_s in (0.0, 0.05, 0.10)]
        generator = Generator(load(target, arrivals))
        running = asyncio.create_task(generator.run())
        async with asyncio.timeout(5):
            await all_asked.wait()
        assert generator.progress.ended == 0
        release.set()
        outcome = await running
    assert all(record.ok for record in outcome.records)
    assert [record.arrival_s for record in outcome.records] == [0.0, 0.05, 0.10]
    assert all(record.sent_s >= record.arrival_s for record in outcome.records)


async def test_waiting_for_a_connection_counts_as_latency():
    async def answer(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)  # each answer takes this long
        writer.write(GOOD)

    async with serving(answer) as target:
        arrivals = [Arrival(0.0, 7, 3)] * 3
        outcome = await Generator(load(target, arrivals, connections_max=1)).run()
    slowest = max(record.e2e_s or 0 for record in outcome.records)
    assert slowest >= 0.15


async def test_a_closed_loop_never_has_more_under_way_than_clients():
    under_way, most = 0, 0

    async def answer(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        writer.write(GOOD)

    async with serving(answer) as target:
        arrivals = [Arrival(0.0, 7, 3)] * 12
        outcome = await Generator(load(target, arrivals, concurrency=3)).run()
    assert most == 3
    assert sum(record.ok for record in outcome.records) == 12
    assert outcome.generator["connections"] == 3


async def test_a_kept_connection_that_the_server_closed_is_replaced():
    answered = 0

    async def answer(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        answered += 1
        if answered == 2:
            writer.close()  # the race of a server's idle timeout with our next request
        else:
            writer.write(GOOD)

    async with serving(answer) as target:
        arrivals = [Arrival(0.0, 7, 3)] * 3
        outcome = await Generator(load(target, arrivals, concurrency=1)).run()
    assert [record.error for record in outcome.records] == [None, None, None]


def test_a_run_on_a_loop_of_its_own_tells_how_far_it_is():
    seen: list[tuple[int, int]] = []
    begun, ended = threading.Event(), threading.Event()
    targets: list[Target] = []

    async def serve() -> None:
        async with serving(saying(GOOD)) as target:
            targets.append(target)
            begun.set()
            await asyncio.to_thread(ended.wait, 10)

    server = threading.Thread(target=asyncio.run, args=(serve(),))
    server.start()
    try:
        assert begun.wait(10)
        work = load(targets[0], [Arrival(0.0, 7, 3)] * 20, concurrency=2)
        outcome = run(work, lambda p: seen.append((p.sent, p.ended)), every_s=0.001)
    finally:
        ended.set()
        server.join()
    assert sum(record.ok for record in outcome.records) == 20
    assert seen[-1] == (20, 20)
    assert all(sent >= ended for sent, ended in seen)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:1/"])
def test_this_machine_may_be_measured(url: str):
    assert Target.from_url(url).port in {8000, 80, 1}


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.7:8000",
        "http://example.org",
        "https://127.0.0.1",
        "127.0.0.1:8000",
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1.example.org",
    ],
)
def test_what_is_not_an_address_of_this_machine_is_refused(url: str):
    with pytest.raises(BadTarget):
        Target.from_url(url)


def test_another_machine_may_be_measured_when_that_is_said():
    assert Target.from_url("http://10.0.0.7:8000", allow_remote=True).host == "10.0.0.7"
