"""A socket and nothing between it and the gateway."""

import asyncio
import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass
class RawAnswer:
    """What came back before the connection closed, or the answer was complete."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape; fails when it has another."""
        assert self.headers["content-type"] == "application/json"
        content = json.loads(self.body)
        assert content.keys() == {"error"}
        assert content["error"].keys() == {"message", "type", "param", "code"}
        return dict(content["error"])


async def talk(
    address: tuple[str, int], *pieces: bytes | Iterable[bytes], timeout_s: float = 10.0
) -> RawAnswer | None:
    """Send, then read one answer; None when the connection closed without one."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(*address)
        sending = asyncio.ensure_future(_send(writer, pieces))
        try:
            return await read_answer(reader)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await close(writer)


async def _send(writer: asyncio.StreamWriter, pieces: Iterable[bytes | Iterable[bytes]]) -> None:
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            for part in [piece] if isinstance(piece, bytes) else piece:
                writer.write(part)
                await writer.drain()


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> RawAnswer | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode().rstrip().split("\r\n")
    headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return RawAnswer(int(first.split()[1]), headers, body)


def post(
    body: bytes = b"{}",
    path: str = "/v1/chat/completions",
    headers: str = "",
    length: int | None = None,
) -> bytes:
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{headers}\r\n".encode()
        + body
    )
