"""Bad input gets an answer in OpenAI's shape, costs little memory, and disturbs nobody."""

import asyncio
import http.client
import json
import os
from collections.abc import Iterator

import psutil
import pytest

from tests.integration.gateway.fleet import MODEL, Yard, running_gateway, until
from tests.integration.gateway.raw import RawAnswer, close, post, read_answer, talk

MIB = 1024 * 1024
PATHS = ["/v1/chat/completions", "/v1/completions"]
#: Right for both calls.
CALL = {"model": MODEL, "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
GOOD = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 2, "ignore_eos": True}).encode()


@pytest.fixture
async def yard():
    async with running_gateway(head_timeout_s=0.5, body_timeout_s=0.5, linger_s=1.0) as yard:
        yield yard


def rss_bytes() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)


async def refused(yard: Yard, *pieces: bytes | Iterator[bytes]) -> tuple[int, str]:
    answer = await talk(yard.address, *pieces)
    assert isinstance(answer, RawAnswer)
    return answer.status, answer.error["code"]


async def assert_well(yard: Yard) -> None:
    """A good request is served, and quickly."""
    answer = await talk(yard.address, post(GOOD, "/v1/completions"), timeout_s=2.0)
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[" * 50_000, 400, "invalid_json"),
        (b"[]", 400, "invalid_type"),
        (
            json.dumps(CALL | {"model": "no/such"}).encode(),
            404,
            "model_not_found",
        ),
        (b'{"model": 7}', 400, "invalid_type"),
        (b'{"prompt": "x"}', 400, "missing_required_parameter"),
        (
            json.dumps(CALL | {"max_tokens": -1}).encode(),
            400,
            "invalid_value",
        ),
        (
            json.dumps(CALL | {"max_tokens": 40_000}).encode(),
            400,
            "context_length_exceeded",
        ),
        (
            json.dumps(
                CALL | {"tools": [{"type": "function", "function": {"name": "f"}}]}
            ).encode(),
            400,
            "unsupported_parameter",
        ),
    ],
)
async def test_a_wrong_body_is_refused_by_name(yard: Yard, path, body, status, code):
    assert await refused(yard, post(body, path)) == (status, code)
    assert yard.fleet.scheduled == []


async def test_a_prompt_over_the_context_is_refused(yard: Yard):
    body = json.dumps({"model": MODEL, "prompt": "word " * 40_000}).encode()
    assert await refused(yard, post(body, PATHS[1])) == (400, "context_length_exceeded")


async def test_token_ids_outside_the_vocabulary_are_refused(yard: Yard):
    body = json.dumps({"model": MODEL, "prompt": [1, 4_000_000_000]}).encode()
    assert await refused(yard, post(body, PATHS[1])) == (400, "invalid_value")


async def test_paths_and_methods_are_refused_in_the_same_shape(yard: Yard):
    for request, status, code in [
        ("GET /nothing", 404, "not_found"),
        ("POST /v1/models", 405, "method_not_allowed"),
        ("GET /v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE /v1/completions", 405, "method_not_allowed"),
        ("GET /v1/models/no/such", 404, "model_not_found"),
    ]:
        head = f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert await refused(yard, head) == (status, code)


# Size.


async def test_nine_megabytes_are_refused_before_they_are_read(yard: Yard):
    answer = await talk(yard.address, post(b"", length=9 * MIB))
    assert answer is not None
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_first_sends_everything_can_read_why_it_was_refused(
    yard: Yard, chunked
):
    """As most clients do: one that is cut off while it sends never sees the answer."""

    def ask() -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*yard.address, timeout=10)
        body = (b"x" * MIB for _ in range(24)) if chunked else b"x" * (24 * MIB)
        connection.request("POST", PATHS[0], body, encode_chunked=chunked)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    status, content = await asyncio.to_thread(ask)
    assert (status, json.loads(content)["error"]["code"]) == (413, "request_too_large")


async def test_a_body_at_the_limit_is_read(yard: Yard):
    body = json.dumps({"model": MODEL, "prompt": "word " * (8 * MIB // 5 - 20)}).encode()
    assert 8 * MIB - 200 < len(body) <= 8 * MIB
    assert await refused(yard, post(body, PATHS[1])) == (400, "context_length_exceeded")


def _chunks(total: int) -> Iterator[bytes]:
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    for _ in range(total // 65_536):
        yield piece


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_three_hundred_chunked_megabytes_are_cut_at_the_limit_with_flat_memory(yard: Yard):
    await assert_well(yard)
    before = rss_bytes()
    most = before
    sent = 0

    def watched() -> Iterator[bytes]:
        nonlocal most, sent
        for piece in _chunks(300 * MIB):
            yield piece
            sent += len(piece)
            most = max(most, rss_bytes())

    assert await refused(yard, CHUNKED, watched()) == (413, "request_too_large")
    assert 8 * MIB < sent < 300 * MIB
    assert most - before < 40 * MIB
    await assert_well(yard)


async def test_many_large_bodies_at_once_are_bounded_together():
    async with running_gateway(intake_bytes_max=3 * MIB, body_timeout_s=0.6) as yard:
        whole = post(b"x" * (2 * MIB), "/v1/completions", length=2 * MIB + 1)
        answers = await asyncio.gather(*(talk(yard.address, whole) for _ in range(3)))
        codes = sorted(a.error["code"] for a in answers if a)
        assert codes == ["overloaded", "overloaded", "request_timeout"]
        await assert_well(yard)


async def test_a_header_bomb_is_refused(yard: Yard):
    head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"
    for bomb in (
        head + b"".join(b"x-%d: y\r\n" % i for i in range(200)) + b"\r\n",
        head + b"x-bomb: " + b"y" * 40_000 + b"\r\n\r\n",
        head + b"".join(b"x-%d: " % i + b"y" * 900 + b"\r\n" for i in range(50)) + b"\r\n",
    ):
        assert await refused(yard, bomb) == (431, "headers_too_large")


async def test_an_endless_header_is_cut_with_flat_memory(yard: Yard):
    before = rss_bytes()
    endless = (b"y" * 65_536 for _ in range(1600))
    answer = await refused(yard, b"GET / HTTP/1.1\r\nx-bomb: ", endless)
    assert answer == (431, "headers_too_large")
    assert rss_bytes() - before < 40 * MIB


async def test_an_endless_url_is_refused(yard: Yard):
    url = b"/" + b"a" * 9_000
    assert await refused(yard, b"GET " + url + b" HTTP/1.1\r\nHost: x\r\n\r\n") == (
        414,
        "uri_too_long",
    )


async def test_a_usual_large_head_is_served(yard: Yard):
    cookie = "".join(f"x-{i}: {'y' * 200}\r\n" for i in range(90))
    answer = await talk(yard.address, post(GOOD, PATHS[1], cookie))
    assert answer is not None
    assert answer.status == 200


# What is no HTTP.


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"GET /v1/models HTTP/1.1\r\nbad header: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_400_and_a_closed_connection(yard: Yard, raw):
    assert await refused(yard, raw) == (400, "invalid_http")
    await assert_well(yard)


async def test_http_1_0_and_strange_hosts_are_served(yard: Yard):
    for head in (
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: e/?\r\n\r\n",
    ):
        answer = await talk(yard.address, head)
        assert answer is not None
        assert answer.status == 200


async def test_garbage_behind_a_running_answer_ends_the_connection(yard: Yard):
    yard.fleet.hold.clear()
    reader, writer = await asyncio.open_connection(*yard.address)
    writer.write(post(GOOD, PATHS[1]))
    await until(lambda: yard.fleet.scheduled)
    writer.write(b"garbage\r\n\r\n")
    answer = await asyncio.wait_for(read_answer(reader), 2.0)
    assert answer is not None
    assert answer.status == 400
    yard.fleet.hold.set()
    await close(writer)
    await until(lambda: yard.fleet.cancelled_requests)


# Slowness.


async def test_a_head_that_comes_too_slowly_is_refused(yard: Yard):
    assert await refused(yard, b"GET /v1/mod") == (408, "request_timeout")


async def test_a_connection_that_says_nothing_is_closed(yard: Yard):
    assert await talk(yard.address, timeout_s=3.0) is None


async def test_a_body_that_comes_too_slowly_is_refused(yard: Yard):
    assert await refused(yard, post(b"{", length=100)) == (408, "request_timeout")
    await assert_well(yard)


async def test_a_second_request_on_a_kept_connection_may_come_late(yard: Yard):
    reader, writer = await asyncio.open_connection(*yard.address)
    for _ in range(2):
        writer.write(post(GOOD, PATHS[1]))
        answer = await asyncio.wait_for(read_answer(reader), 2.0)
        assert answer is not None
        assert answer.status == 200
        await asyncio.sleep(0.7)  # longer than a head may take
    await close(writer)


async def test_pipelined_requests_are_answered_in_order(yard: Yard):
    reader, writer = await asyncio.open_connection(*yard.address)
    writer.write(post(GOOD, PATHS[1]) + post(b"{", PATHS[1]) + post(GOOD, PATHS[1]))
    answers = [await asyncio.wait_for(read_answer(reader), 2.0) for _ in range(3)]
    assert [a.status for a in answers if a] == [200, 400, 200]
    await close(writer)


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(yard: Yard):
    _, writer = await asyncio.open_connection(*yard.address)
    writer.write(post(b"{", length=1000))
    await writer.drain()
    await close(writer)
    await until(lambda: yard.counters.get("http_clients_gone_total"))
    assert yard.fleet.scheduled == []


async def test_too_many_connections_are_told_so():
    async with running_gateway(connections_max=3) as yard:
        kept = [await asyncio.open_connection(*yard.address) for _ in range(3)]
        await until(lambda: len(yard.gateway._server._server.server_state.connections) >= 3)
        answer = await talk(yard.address)
        assert answer is not None
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        for _, writer in kept:
            await close(writer)


async def test_too_many_requests_are_told_so():
    async with running_gateway(requests_max=1) as yard:
        yard.fleet.hold.clear()
        first = asyncio.ensure_future(talk(yard.address, post(GOOD, PATHS[1])))
        await until(lambda: yard.fleet.scheduled)
        assert await refused(yard, post(GOOD, PATHS[1])) == (503, "overloaded")
        yard.fleet.hold.set()
        answer = await first
        assert answer is not None
        assert answer.status == 200


async def test_a_thousand_bad_requests_leave_the_memory_flat(yard: Yard):
    bad = [post(b"{"), post(b"[]"), b"nonsense\r\n\r\n", post(b"", length=9 * MIB)]
    for raw in bad * 5:
        await talk(yard.address, raw)
    before = rss_bytes()
    for _ in range(10):
        await asyncio.gather(*(talk(yard.address, raw) for raw in bad * 25))
        await assert_well(yard)
    assert rss_bytes() - before < 20 * MIB
