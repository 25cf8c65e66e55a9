"""Others die, lose and lag; the client gets its exact text, or a reason in the right shape."""

import asyncio
import json
import socket
from typing import Any

import openai
import pytest

from bus.tracing import trace_id
from schemas.body import SamplingParameters
from tests.integration.gateway.fleet import (
    EPOCH,
    FAST,
    MODEL,
    Yard,
    running_gateway,
    story_of,
    until,
)
from tests.integration.gateway.raw import RawAnswer, close, post, read_answer, talk

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
TOKENS = 60
SAMPLING = SamplingParameters(max_tokens=TOKENS, ignore_eos=True, seed=7)
CALL: dict[str, Any] = {
    "model": MODEL,
    "messages": HELLO,
    "max_tokens": TOKENS,
    "seed": 7,
    "extra_body": {"ignore_eos": True},
}
STORY = story_of(HELLO, SAMPLING)


@pytest.fixture
async def yard():
    async with running_gateway(**FAST) as yard:
        yard.fleet.itl_s = 0.01
        yield yard


@pytest.fixture(params=["direct", "asgi"])
def writer(request, monkeypatch) -> str:
    """Both ways to the client: onto the connection itself, and as under any other server."""
    if request.param == "asgi":
        monkeypatch.setattr("components.gateway.handlers.CONNECTION", "not offered")
    return str(request.param)


class Reading:
    """A streamed chat and the text that has come so far."""

    def __init__(self, stream: Any) -> None:
        self.text = ""
        self.pieces = 0
        self.done = asyncio.ensure_future(self._read(stream))

    async def _read(self, stream: Any) -> str:
        async for chunk in stream:
            self.text += chunk.choices[0].delta.content or ""
            self.pieces += 1
        return self.text


async def begin(yard: Yard, **changes: Any) -> Reading:
    client = yard.client()
    return Reading(await client.chat.completions.create(**CALL | changes, stream=True))


# Workers.


@pytest.mark.parametrize("how", ["killed", "goodbye", "restarted"])
async def test_a_worker_lost_in_mid_stream_is_not_seen_by_the_client(yard: Yard, how):
    reading = await begin(yard)
    await until(lambda: reading.pieces > 10)
    [attempt] = yard.fleet.attempts
    match how:
        case "killed":
            yard.fleet.kill(attempt.worker)
        case "goodbye":
            attempt.cancelled = True
            yard.fleet.beat("worker", attempt.worker, state="stopped")
        case "restarted":
            attempt.cancelled = True
            yard.fleet.beat("worker", attempt.worker, process_epoch=EPOCH + 1)
    assert await reading.done == STORY
    _, second = yard.fleet.attempts
    assert second.card.attempt == 2
    assert 0 < second.card.emitted_tokens < TOKENS
    assert len(second.entries) == TOKENS - second.card.emitted_tokens
    steps = yard.host.steps(second.card.request_id)
    assert steps == ["accepted", "first_token", "interrupted", "finished"]


async def test_a_worker_lost_before_its_first_token_is_not_seen_by_the_client(yard: Yard):
    yard.fleet.hold.clear()
    waiting = asyncio.ensure_future(begin(yard))
    await until(lambda: yard.fleet.attempts)
    yard.fleet.kill(yard.fleet.attempts[0].worker)
    yard.fleet.attempts[0].cancelled = True
    await until(lambda: len(yard.fleet.attempts) == 2)
    assert not waiting.done()
    yard.fleet.hold.set()
    assert await (await waiting).done == STORY


async def test_late_tokens_of_a_stopped_worker_that_wakes_up_are_dropped(yard: Yard):
    reading = await begin(yard)
    await until(lambda: reading.pieces > 10)
    stopped = yard.fleet.attempts[0].worker
    yard.fleet.silence(stopped)
    assert await reading.done == STORY
    assert yard.counters.get("late_tokens_total", 0) == 0
    yard.fleet.revive(stopped)
    await until(lambda: yard.counters.get("late_tokens_total", 0) > 0)
    # And it is told, so that it stops.
    request_id = yard.fleet.attempts[0].card.request_id
    await until(lambda: (stopped, request_id, 1) in yard.fleet.cancelled_attempts)


async def test_several_choices_survive_a_lost_worker(yard: Yard):
    answer = asyncio.ensure_future(yard.client().chat.completions.create(**CALL | {"n": 3}))
    await until(lambda: yard.fleet.attempts and len(yard.fleet.attempts[0].entries) > 20)
    yard.fleet.kill(yard.fleet.attempts[0].worker)
    sampling = SAMPLING.model_copy(update={"n": 3})
    want = [story_of(HELLO, sampling, choice) for choice in range(3)]
    assert [c.message.content for c in (await answer).choices] == want


async def test_many_streams_survive_a_lost_worker(yard: Yard):
    readings = await asyncio.gather(*(begin(yard) for _ in range(20)))
    await until(lambda: all(r.pieces > 5 for r in readings))
    yard.fleet.kill("decode-0")
    assert await asyncio.gather(*(r.done for r in readings)) == [STORY] * 20
    assert yard.counters["interruptions_total"] == 10


async def test_lost_frames_are_asked_for_and_filled_in(yard: Yard):
    yard.fleet.loses = lambda entry: entry[3] % 5 == 3 or entry[3] >= TOKENS - 2
    reading = await begin(yard)
    assert await reading.done == STORY
    assert yard.counters["resumes_wanted_total"] > 0
    assert len(yard.fleet.attempts) == 1


async def test_an_engine_that_always_fails_ends_with_a_status(yard: Yard):
    yard.fleet.garble = lambda e: (*e[:4], [], "", None, ["error", None, 0])
    with pytest.raises(openai.InternalServerError) as caught:
        await begin(yard)
    assert (caught.value.status_code, caught.value.code) == (502, "too_many_attempts")
    assert len(yard.fleet.attempts) == 5


async def test_malformed_logprobs_end_only_their_own_stream(yard: Yard):
    yard.fleet.garble = lambda e: (*e[:6], {"logprobs": [7]}, e[7])
    with pytest.raises(openai.APIError) as caught:
        await (await begin(yard, logprobs=True)).done
    assert caught.value.code == "internal_error"
    yard.fleet.garble = lambda e: e
    assert await (await begin(yard)).done == STORY


# Scheduler and bus.


async def test_a_scheduler_that_restarts_gets_what_it_had_queued(yard: Yard):
    yard.fleet.answers_schedule = False
    waiting = [asyncio.ensure_future(begin(yard)) for _ in range(5)]
    await until(lambda: len({s.card.request_id for s in yard.fleet.scheduled}) == 5)
    yard.fleet.scheduled.clear()
    yard.fleet.answers_schedule = True
    yard.fleet.beat("scheduler", "scheduler-0", process_epoch=EPOCH + 1)
    readings = await asyncio.gather(*waiting)
    assert await asyncio.gather(*(r.done for r in readings)) == [STORY] * 5


async def test_without_a_scheduler_requests_wait_for_one(yard: Yard):
    yard.fleet.beat("scheduler", "scheduler-0", state="stopped")
    await until(lambda: not yard.gateway._desk.readiness.ready)
    waiting = asyncio.ensure_future(begin(yard))
    await until(lambda: yard.gateway._desk.core.requests)
    yard.fleet.beat("scheduler", "scheduler-0", process_epoch=EPOCH + 1)
    assert await (await waiting).done == STORY


async def test_a_bus_that_was_away_for_a_while_loses_no_token(yard: Yard):
    readings = await asyncio.gather(*(begin(yard) for _ in range(10)))
    await until(lambda: all(r.pieces > 5 for r in readings))
    yard.hub.partition("gateway-0")
    await asyncio.sleep(1.2)  # longer than it takes to call a worker silent
    yard.hub.heal("gateway-0")
    assert await asyncio.gather(*(r.done for r in readings)) == [STORY] * 10
    assert yard.counters.get("interruptions_total", 0) == 0


async def test_after_a_reconnect_what_waits_is_submitted_again_at_once():
    async with running_gateway(submit_retry_s=30.0) as yard:
        yard.fleet.answers_schedule = False
        waiting = asyncio.ensure_future(begin(yard))
        await until(lambda: yard.fleet.scheduled)
        yard.fleet.answers_schedule = True
        yard.hub.partition("gateway-0")
        yard.hub.heal("gateway-0")
        assert await (await waiting).done == STORY


@pytest.mark.parametrize(
    ("code", "status", "error_code", "retry_after"),
    [
        ("queue_full", 429, "queue_full", "3"),
        ("deadline_exceeded", 504, "deadline_exceeded", None),
        ("prompt_too_long", 400, "context_length_exceeded", None),
        ("no_worker", 503, "no_worker", "1"),
        ("engine_error", 502, "engine_error", None),
        ("model_not_found", 404, "model_not_found", None),
        ("body_unavailable", 503, "body_unavailable", "1"),
    ],
)
async def test_a_refusal_has_its_status_and_tells_nothing_of_the_inside(
    yard: Yard, code, status, error_code, retry_after
):
    yard.fleet.refuse_with = code
    for stream in (True, False):
        body = json.dumps({"model": MODEL, "messages": HELLO, "stream": stream}).encode()
        answer = await talk(yard.address, post(body))
        assert isinstance(answer, RawAnswer)
        assert (answer.status, answer.error["code"]) == (status, error_code)
        assert answer.headers.get("retry-after") == retry_after
        assert "0xdeadbeef" not in answer.body.decode()


async def test_at_its_deadline_a_request_without_tokens_gets_504():
    async with running_gateway(**FAST, deadline_s=0.5) as yard:
        yard.fleet.hold.clear()
        with pytest.raises(openai.APIStatusError) as caught:
            await begin(yard)
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        assert len(yard.fleet.cancelled_requests) == 1
        yard.fleet.hold.set()


async def test_at_its_deadline_a_stream_ends_with_an_error_and_done():
    async with running_gateway(**FAST, deadline_s=0.5) as yard:
        yard.fleet.itl_s = 0.05
        body = json.dumps(
            {"model": MODEL, "messages": HELLO, "stream": True, "ignore_eos": True}
        ).encode()
        answer = await talk(yard.address, post(body, headers="Connection: close\r\n"))
        assert isinstance(answer, RawAnswer)
        assert answer.status == 200
        *_, error, done, _ = unchunked(answer.body).split(b"\n\n")
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
        assert done == b"data: [DONE]"


def unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, body = body.split(b"\r\n", 1)
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return whole


# Clients.


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_everywhere_at_once(yard: Yard, writer, stream):
    _, writer = await asyncio.open_connection(*yard.address)
    body = json.dumps({"model": MODEL, "messages": HELLO, "stream": stream, "ignore_eos": True})
    writer.write(post(body.encode()))
    await until(lambda: yard.fleet.attempts and len(yard.fleet.attempts[0].entries) > 5)
    [attempt] = yard.fleet.attempts
    await close(writer)
    await until(lambda: attempt.cancelled)
    said = len(attempt.entries)
    assert yard.fleet.cancelled_requests == [attempt.card.request_id]
    assert yard.host.steps(attempt.card.request_id)[-1] == "cancelled"
    await asyncio.sleep(0.1)
    assert len(attempt.entries) <= said + 1


async def test_a_client_that_leaves_before_dispatch_cancels_at_the_scheduler(yard: Yard):
    yard.fleet.answers_schedule = False
    _, writer = await asyncio.open_connection(*yard.address)
    writer.write(post(json.dumps({"model": MODEL, "messages": HELLO}).encode()))
    await until(lambda: yard.fleet.scheduled)
    await close(writer)
    await until(lambda: yard.fleet.cancelled_requests)


async def slow_reader(yard: Yard, **fields: Any) -> tuple[asyncio.StreamReader, Any]:
    """A client that does not read, with the transport to ``resume_reading`` on."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    await asyncio.get_running_loop().sock_connect(sock, yard.address)
    reader, writer = await asyncio.open_connection(sock=sock)
    transport: Any = writer.transport
    call = {"model": MODEL, "prompt": "x", "max_tokens": 30_000, "ignore_eos": True, "stream": True}
    writer.write(post(json.dumps(call | fields).encode(), "/v1/completions"))
    await writer.drain()
    transport.pause_reading()
    return reader, writer


async def read_until_done(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    body = b""
    async with asyncio.timeout(20):
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return body


async def test_what_a_slow_client_does_not_take_leaves_merged_and_complete(writer):
    async with running_gateway() as yard:
        tokens = 12_000
        reader, writer = await slow_reader(yard, max_tokens=tokens)
        told = yard.fleet.attempts
        await until(lambda: told and len(told[0].entries) == tokens, timeout_s=30)
        await until(lambda: not yard.gateway._desk.core.requests)
        writer.transport.resume_reading()
        body = await read_until_done(reader)
        events = [json.loads(line[6:]) for line in body.split(b"\n") if line[:7] == b"data: {"]
        text = "".join(e["choices"][0]["text"] for e in events)
        sampling = SAMPLING.model_copy(update={"max_tokens": tokens, "seed": None})
        assert text == story_of("x", sampling)
        assert len(events) < tokens / 2
        await close(writer)


async def test_a_client_that_is_too_far_behind_is_ended_with_an_error(writer):
    async with running_gateway(undelivered_tokens_max=2_000) as yard:
        reader, writer = await slow_reader(yard)
        await until(lambda: yard.fleet.cancelled_requests, timeout_s=20)
        writer.transport.resume_reading()
        body = await read_until_done(reader)
        assert b'"client_too_slow"' in body
        assert body.endswith(b"data: [DONE]\n\n")
        await close(writer)


async def test_a_client_that_takes_nothing_for_long_is_let_go(writer):
    async with running_gateway(write_stall_s=0.3) as yard:
        _, writer = await slow_reader(yard)
        await until(lambda: yard.counters.get("stalled_clients_total"), timeout_s=20)
        await until(lambda: not yard.gateway._desk._exchanges)
        await close(writer)


# What is recorded.


async def test_the_trace_of_the_client_is_in_every_message_and_event(yard: Yard):
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = f"traceparent: {traceparent}\r\nX-Request-Id: my.id-7\r\n"
    call = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "ignore_eos": True}
    answer = await talk(yard.address, post(json.dumps(call).encode(), headers=headers))
    assert isinstance(answer, RawAnswer)
    assert answer.headers["x-request-id"] == "my.id-7"
    [scheduled] = yard.fleet.scheduled
    traces = {trace_id(e.traceparent) for e in yard.host.recorded}
    assert traces == {trace_id(scheduled.card.traceparent)} == {trace_id(traceparent)}


NOBODY = f"00-{'0' * 32}-{'0' * 16}-01"


@pytest.mark.parametrize("bad", ["", "00-xyz", "my id", "x" * 65, "a\tb", NOBODY])
async def test_a_strange_trace_or_request_id_is_replaced(yard: Yard, bad):
    headers = f"traceparent: {bad}\r\nX-Request-Id: {bad or 'ä'}\r\n"
    call = {"model": MODEL, "messages": HELLO, "max_tokens": 1, "ignore_eos": True}
    answer = await talk(yard.address, post(json.dumps(call).encode(), headers=headers))
    assert isinstance(answer, RawAnswer)
    [scheduled] = yard.fleet.scheduled
    assert trace_id(scheduled.card.traceparent) not in {None, "0" * 32}
    assert answer.headers["x-request-id"] in {scheduled.card.request_id, bad}


async def test_the_steps_of_a_request_say_lengths_and_times_and_no_word_of_it(yard: Yard):
    await (await begin(yard)).done
    assert [e.step for e in yard.host.recorded] == ["accepted", "first_token", "finished"]
    details: list[Any] = [e.detail for e in yard.host.recorded]
    accepted, first, finished = details
    assert accepted["prompt_tokens"] == 12
    assert first["ttft_ms"] > 0
    assert finished["completion_tokens"] == TOKENS
    assert finished["e2e_ms"] >= first["ttft_ms"]
    written = str(details)
    assert "hello" not in written
    assert STORY[:20] not in written


async def test_every_event_says_where_its_text_ends(yard: Yard, writer):
    call = {"model": MODEL, "prompt": "x", "max_tokens": 5, "ignore_eos": True, "stream": True}
    answer = await talk(
        yard.address, post(json.dumps(call).encode(), "/v1/completions", "Connection: close\r\n")
    )
    assert isinstance(answer, RawAnswer)
    ids = [line for line in unchunked(answer.body).split(b"\n") if line.startswith(b"id: ")]
    assert ids == [b"id: 0:%d" % i for i in range(5)]


# Health, drain.


async def status(yard: Yard, path: str) -> tuple[int, Any]:
    async with yard.http() as http:
        answer = await http.get(path)
        return answer.status_code, answer.json()


async def test_health_and_ready_tell_what_is_missing():
    async with running_gateway(ready=False, **FAST) as yard:
        fleet = yard.fleet
        await until(lambda: yard.gateway._desk.readiness.ready)
        assert (await status(yard, "/ready"))[0] == 200
        code, health = await status(yard, "/health")
        assert (code, health["status"], health["models"]) == (200, "ok", [MODEL])
        fleet.beat("router", "router-0", owns=())
        await until(lambda: not yard.gateway._desk.readiness.ready)
        assert await status(yard, "/ready") == (
            503,
            {"ready": False, "missing": [f"a router for shard {MODEL}"]},
        )
        fleet.beat("router", "router-0", owns=(MODEL,))
        for worker in ("decode-0", "decode-1"):
            fleet.kill(worker)
        await until(lambda: "a worker" in yard.gateway._desk.readiness.missing)
        code, health = await status(yard, "/health")
        assert (code, health["missing"]) == (503, ["a worker"])
        fleet.beat("scheduler", "scheduler-0", state="stopped")
        await until(lambda: "a scheduler" in yard.gateway._desk.readiness.missing)
        assert (await status(yard, "/live"))[0] == 200
        yard.hub.partition("gateway-0")
        assert (await status(yard, "/health"))[1]["missing"] == ["the connection to the bus"]
        yard.hub.heal("gateway-0")


async def test_a_model_stays_known_while_its_workers_are_away():
    async with running_gateway("decode-0", **FAST) as yard:
        yard.fleet.kill("decode-0")
        await until(lambda: not yard.gateway._desk.readiness.ready)
        assert (await status(yard, "/v1/models"))[1]["data"][0]["id"] == MODEL


async def test_drain_lets_streams_end_and_refuses_new_requests():
    async with running_gateway(**FAST) as yard:
        yard.fleet.itl_s = 0.01
        reading = await begin(yard)
        draining = asyncio.ensure_future(yard.gateway.drain(10.0))
        await until(lambda: yard.gateway._desk.draining)
        assert (await status(yard, "/ready"))[0] == 503
        with pytest.raises(openai.APIStatusError) as caught:
            await begin(yard)
        assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
        assert not draining.done()
        assert await reading.done == STORY
        await asyncio.wait_for(draining, 1.0)


async def test_at_the_end_of_the_drain_streams_are_told_why():
    async with running_gateway(**FAST) as yard:
        yard.fleet.itl_s = 0.05
        reading = await begin(yard)
        await yard.gateway.drain(0.2)
        with pytest.raises(openai.APIError) as caught:
            await reading.done
        assert caught.value.code == "shutting_down"
        assert STORY.startswith(reading.text)
        await until(lambda: yard.fleet.attempts[0].cancelled)


async def test_a_card_that_nobody_gives_is_asked_for_until_somebody_does():
    async with running_gateway(ready=False) as yard:
        fleet = yard.fleet
        await until(lambda: yard.gateway._desk.readiness.ready)
        fleet.beat("worker", "odd-0", model="odd/model", shard="odd/model")
        await until(lambda: yard.counters.get("model_cards_failed_total", 0) >= 2, timeout_s=10)
        assert "odd/model" not in yard.gateway._desk.models


async def test_a_port_that_is_taken_is_no_bug_of_ours():
    from components.host.errors import CannotStart  # noqa: PLC0415

    async with running_gateway() as yard:
        with pytest.raises(CannotStart):
            async with running_gateway(port=yard.address[1]):
                pass


async def test_nothing_of_the_inside_leaks_when_we_are_wrong(yard: Yard, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("secret at 0xdeadbeef in /etc")

    monkeypatch.setattr("components.gateway.calls.new_requests", broken)
    answer = await talk(
        yard.address, post(json.dumps({"model": MODEL, "messages": HELLO}).encode())
    )
    assert isinstance(answer, RawAnswer)
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert yard.counters["http_errors_total"] == 1
    monkeypatch.undo()
    monkeypatch.setattr("components.gateway.app._model", broken)
    async with yard.http() as http:
        response = await http.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


async def test_both_ways_to_the_client_give_the_same_bytes(yard: Yard, monkeypatch):
    names = iter(["0" * 24, "0" * 24])
    monkeypatch.setattr("components.gateway.handlers.new_name", lambda: next(names))
    call = CALL | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
    call |= call.pop("extra_body")
    wire = []
    for connection in ("switchyard.connection", "not offered"):
        monkeypatch.setattr("components.gateway.handlers.CONNECTION", connection)
        monkeypatch.setattr("components.host.clock.SystemClock.wall_ms", lambda _: 7_000)
        raw = post(json.dumps(call).encode(), headers="Connection: close\r\n")
        answer = await talk(yard.address, raw)
        assert isinstance(answer, RawAnswer)
        wire.append(answer)
    direct, asgi = wire
    assert direct.body.count(b"data: ") > TOKENS
    assert unchunked(direct.body) == unchunked(asgi.body)
    assert direct.headers.keys() == asgi.headers.keys()


async def test_pipelined_streams_stay_apart(yard: Yard, writer):
    reader, out = await asyncio.open_connection(*yard.address)
    calls = [
        {"model": MODEL, "prompt": p, "max_tokens": 9, "ignore_eos": True, "stream": True}
        for p in ("a", "b", "c")
    ]
    out.write(b"".join(post(json.dumps(c).encode(), "/v1/completions") for c in calls))
    for call in calls:
        body = await read_until_done(reader)
        events = [json.loads(line[6:]) for line in body.split(b"\n") if line[:7] == b"data: {"]
        text = "".join(e["choices"][0]["text"] for e in events)
        sampling = SamplingParameters(max_tokens=9, ignore_eos=True)
        assert text == story_of(call["prompt"], sampling)
    await close(out)


async def test_answers_on_one_connection_stay_apart(yard: Yard):
    """Keep-alive: the end of one answer must not end the next one's connection."""
    reader, writer = await asyncio.open_connection(*yard.address)
    for n in range(5):
        call = {"model": MODEL, "prompt": f"{n}", "max_tokens": 3, "ignore_eos": True}
        writer.write(post(json.dumps(call).encode(), "/v1/completions"))
        answer = await asyncio.wait_for(read_answer(reader), 2.0)
        assert isinstance(answer, RawAnswer)
        assert answer.status == 200
    await close(writer)
