"""The HTTP address: the official client, and everything that is wrong in every way."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import psutil

from tests.show.fleet import Fleet
from tests.show.proof import Figure, Run

MODEL = "sim/words"
FAST = ("--profile", "constant:ttft_ms=5,itl_ms=2")
MESSAGES = [{"role": "user", "content": "Which track is free?"}]
RSS_GROWTH_BYTES_MAX = 40 * 1024 * 1024
HANG_S = 15.0


async def official_client(run: Run) -> Figure:
    """Sync and async, chat and completions, streamed and not; usage each time."""
    async with Fleet(run.folder / "fleet", FAST, run.fault) as fleet:
        base = f"{fleet.url}/v1"
        good: list[str] = []
        bad: list[str] = []
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as sync:
            for name, ask in _sync_calls(sync).items():
                whole = await asyncio.to_thread(ask)
                (good if whole else bad).append(f"sync {name}")
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            for name, whole in (await _async_calls(client)).items():
                (good if whole else bad).append(f"async {name}")
    text = f"{len(good)} of {len(good) + len(bad)} calls whole, with usage"
    return Figure(text + (f"; not: {', '.join(bad)}" if bad else ""), not bad)


def _whole(texts: list[str], usage: openai.types.CompletionUsage | None) -> bool:
    return bool(
        "".join(texts).strip()
        and usage is not None
        and usage.completion_tokens == 12
        and usage.prompt_tokens > 2
        and usage.total_tokens == usage.prompt_tokens + 12
    )


_CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": MESSAGES,
    "max_tokens": 12,
    "extra_body": {"ignore_eos": True},
}
_TEXT: dict[str, Any] = {
    "model": MODEL,
    "prompt": "The yard",
    "max_tokens": 12,
    "extra_body": {"ignore_eos": True},
}
_STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def _sync_calls(client: openai.OpenAI):
    def chat() -> bool:
        r = client.chat.completions.create(**_CHAT)
        return _whole([r.choices[0].message.content], r.usage)

    def text() -> bool:
        r = client.completions.create(**_TEXT)
        return _whole([r.choices[0].text], r.usage)

    def chat_streamed() -> bool:
        chunks = list(client.chat.completions.create(**_CHAT, **_STREAM))
        said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        return _whole(said, chunks[-1].usage)

    def text_streamed() -> bool:
        chunks = list(client.completions.create(**_TEXT, **_STREAM))
        return _whole([c.choices[0].text for c in chunks if c.choices], chunks[-1].usage)

    def models() -> bool:
        return MODEL in [m.id for m in client.models.list()]

    return {
        "chat": chat,
        "completions": text,
        "chat streamed": chat_streamed,
        "completions streamed": text_streamed,
        "models": models,
    }


async def _async_calls(client: openai.AsyncOpenAI) -> dict[str, bool]:
    chat = await client.chat.completions.create(**_CHAT)
    text = await client.completions.create(**_TEXT)
    chats = [c async for c in await client.chat.completions.create(**_CHAT, **_STREAM)]
    texts = [c async for c in await client.completions.create(**_TEXT, **_STREAM)]
    said = [c.choices[0].delta.content or "" for c in chats if c.choices]
    models = [m.id async for m in await client.models.list()]
    return {
        "chat": _whole([chat.choices[0].message.content], chat.usage),
        "completions": _whole([text.choices[0].text], text.usage),
        "chat streamed": _whole(said, chats[-1].usage),
        "completions streamed": _whole(
            [c.choices[0].text for c in texts if c.choices], texts[-1].usage
        ),
        "models": MODEL in models,
    }


# Bad input.


@dataclass(frozen=True, slots=True)
class Bad:
    """Raw bytes to send and the status that must come back."""

    name: str
    status: int
    parts: tuple[bytes, ...]
    repeat: tuple[bytes, int] | None = None


def _post(body: bytes, path: str = "/v1/chat/completions", headers: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: yard\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def _chat(**changes: object) -> bytes:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 4} | changes
    return _post(json.dumps({k: v for k, v in body.items() if v is not ...}).encode())


def _chunked_head() -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: yard\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )


_MEGABYTE = b"a" * 1_000_000
_CHUNK = b"f4240\r\n" + _MEGABYTE + b"\r\n"

BAD: tuple[Bad, ...] = (
    Bad("malformed JSON", 400, (_post(b'{"model": '),)),
    Bad("not UTF-8", 400, (_post(b'{"model": "\xff\xfe"}'),)),
    Bad("a list", 400, (_post(b"[1, 2]"),)),
    Bad("an empty body", 400, (_post(b""),)),
    Bad("NaN", 400, (_post(b'{"model": "sim/words", "messages": [], "temperature": NaN}'),)),
    Bad("deep nesting", 400, (_post(b"[" * 100_000),)),
    Bad("unknown model", 404, (_chat(model="nobody/knows"),)),
    Bad("no model", 400, (_chat(model=...),)),
    Bad("no messages", 400, (_chat(messages=...),)),
    Bad("empty messages", 400, (_chat(messages=[]),)),
    Bad("messages of the wrong type", 400, (_chat(messages="hello"),)),
    Bad("a message without a role", 400, (_chat(messages=[{"content": "x"}]),)),
    Bad("negative max_tokens", 400, (_chat(max_tokens=-1),)),
    Bad("max_tokens as text", 400, (_chat(max_tokens="many"),)),
    Bad("huge max_tokens", 400, (_chat(max_tokens=10**12),)),
    Bad("temperature of -5", 400, (_chat(temperature=-5),)),
    Bad("n of 10,000", 400, (_chat(n=10_000),)),
    Bad("too many stops", 400, (_chat(stop=["x"] * 1000),)),
    Bad("tools, not supported yet", 400, (_chat(tools=[{"type": "function"}]),)),
    Bad("unknown path", 404, (_post(b"{}", "/v1/nothing"),)),
    Bad("wrong method", 405, (b"DELETE /v1/models HTTP/1.1\r\nHost: yard\r\n\r\n",)),
    Bad("two content lengths", 400, (_post(b"{}", headers="Content-Length: 7\r\n"),)),
    Bad("no HTTP at all", 400, (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",)),
    Bad("9 MB body", 413, (_post(b"{}").replace(b"Length: 2", b"Length: 9000000"), _MEGABYTE)),
    Bad("9 MB, chunked", 413, (_chunked_head(),), (_CHUNK, 9)),
    Bad("300 MB, chunked", 413, (_chunked_head(),), (_CHUNK, 300)),
    Bad(
        "300 MB body",
        413,
        (_post(b"{}").replace(b"Length: 2", b"Length: 300000000"),),
        (_MEGABYTE, 300),
    ),
    Bad("one header of 1 MB", 431, (_post(b"{}", headers=f"X-Bomb: {'a' * 1_000_000}\r\n"),)),
    Bad(
        "50,000 headers",
        431,
        (_post(b"{}", headers="".join(f"X-{i}: a\r\n" for i in range(50_000))),),
    ),
)


async def bad_input(run: Run) -> Figure:
    """Each case gets its 4xx in OpenAI's shape, quickly, and the gateway's memory stays flat."""
    async with Fleet(run.folder / "fleet", FAST, run.fault) as fleet:
        port = int(fleet.url.rsplit(":", 1)[1])
        gateway = psutil.Process(fleet.pid("gateway-0"))
        await _send(port, Bad("warm", 200, (_chat(),)))
        before = peak = gateway.memory_info().rss
        wrong = []
        for bad in BAD:
            async with _peak_of(gateway) as seen:
                problem = await _send(port, bad)
            peak = max(peak, *seen)
            if problem:
                wrong.append(f"{bad.name}: {problem}")
        if problem := await _send(port, Bad("after all that", 200, (_chat(),))):
            wrong.append(f"a good request afterwards: {problem}")
    growth = peak - before
    holds = not wrong and growth <= RSS_GROWTH_BYTES_MAX
    text = f"{len(BAD) - len(wrong)} of {len(BAD)} as they must; memory +{growth / 1e6:.0f} MB"
    return Figure(text + (f"; first wrong: {wrong[0]}" if wrong else ""), holds, {"wrong": wrong})


@contextlib.asynccontextmanager
async def _peak_of(process: psutil.Process) -> AsyncIterator[list[int]]:
    """The resident sizes seen every 20 ms meanwhile."""
    sizes = [process.memory_info().rss]

    async def watch() -> None:
        while True:
            sizes.append(process.memory_info().rss)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(watch())
    try:
        yield sizes
    finally:
        task.cancel()


async def _send(port: int, bad: Bad) -> str:
    """Send raw bytes; returns what is wrong with the answer, or nothing."""
    try:
        answer = await asyncio.to_thread(_exchange, port, bad)
    except TimeoutError:
        return f"no answer within {HANG_S:.0f} s"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
    if status != bad.status:
        return f"{status} where {bad.status} belongs: {body[:120]!r}"
    return "" if status == 200 else _shape(body)


def _exchange(port: int, bad: Bad) -> bytes:
    """Write and read at the same time, on plain sockets.

    What has arrived can still be read after a reset; asyncio's transports throw it away.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
        sender = threading.Thread(target=_write, args=(connection, bad), daemon=True)
        sender.start()
        answer = b""
        with contextlib.suppress(ConnectionError):
            while not _complete(answer) and (data := connection.recv(65536)):
                answer += data
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        sender.join(HANG_S)
        return answer


def _write(connection: socket.socket, bad: Bad) -> None:
    """All of it, unless the gateway hangs up in the middle: that is an answer, not a problem."""
    chunk, times = bad.repeat or (b"", 0)
    with contextlib.suppress(OSError):
        for part in (*bad.parts, *(chunk for _ in range(times))):
            connection.sendall(part)


def _complete(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return body.endswith(b"0\r\n\r\n")


def _shape(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"not OpenAI's shape: {body[:120]!r}"
    missing = {"message", "type", "param", "code"} - set(error)
    return f"the error lacks {sorted(missing)}" if missing else ""
