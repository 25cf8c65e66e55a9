"""A small HTTP/1.1 server for tests: it sees who leaves, cuts events anywhere, and can just die."""

import asyncio
import json
from typing import Any


class Writer:
    """One answer. ``cut`` bytes per write splits events anywhere; 0 joins all into one write."""

    def __init__(self, writer, cut):
        self.writer, self.cut, self.head_sent, self.joined = writer, cut, False, b""

    async def whole(self, status, value):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        self.writer.write(head + body)
        await self.writer.drain()

    async def head(self):
        self.head_sent = True
        self.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        await self.writer.drain()

    async def event(self, value):
        data = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
        event = b"data: " + data + b"\n\n"
        if self.cut == 0:
            self.joined += event
        elif self.cut is None:
            await self._chunk(event)
        else:
            for at in range(0, len(event), self.cut):
                await self._chunk(event[at : at + self.cut])
                await asyncio.sleep(0)

    async def _chunk(self, data):
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def end(self, *, done=True):
        if done:
            await self.event(b"[DONE]")
        if self.joined:
            await self._chunk(self.joined)
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()


class HttpServer:
    """``_answer`` is the subclass's; it returns False to close the connection.

    ``cut``: see ``Writer``. ``dropped`` counts clients that left before their answer ended.
    """

    def __init__(self, ip="127.0.0.1"):
        self.ip = ip
        self.host = f"[{ip}]" if ":" in ip else ip
        self.cut = None
        self.connections = self.dropped = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[Any] = set()

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    async def start(self, port=0):
        self._server = await asyncio.start_server(self._serve, self.ip, port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        """Also what a dying process does: every connection is reset."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _answer(self, method, path, headers, body, answer):
        raise NotImplementedError

    async def _serve(self, reader, writer):
        self.connections += 1
        self._writers.add(writer)
        self._serving.add(asyncio.current_task())
        more = b""  # of the next request, which was read while looking whether the client is there
        try:
            while more is not None:
                more = await self._one(reader, writer, more)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            self._serving.discard(asyncio.current_task())
            writer.close()

    async def _one(self, reader, writer, begun):
        try:
            head = (begun + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        answer = Writer(writer, self.cut)
        task = asyncio.ensure_future(self._answer(method, path, headers, body, answer))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            self.dropped += 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None
        gone.cancel()
        rest: Any = (await asyncio.gather(gone, return_exceptions=True))[0]
        more = rest if isinstance(rest, bytes) else b""
        return more if task.result() else None
