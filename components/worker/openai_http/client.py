"""The server over HTTP: bounded in connections, time and bytes; every fault is one of ``faults``.

Polls have connections of their own, so that a server full of streams still answers them.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import orjson

from components.domain.sse import DONE, Events, EventTooLong
from components.worker.api_key import bearer
from components.worker.openai_http.faults import ServerFault, fault_of
from components.worker.openai_http.settings import OpenAISettings

#: Answers in one piece: metrics of many ranks, prompt logprobs of a long prompt.
ANSWER_BYTES_MAX: Final = 32 << 20
ERROR_BYTES_MAX: Final = 16 << 10
WRITE_TIMEOUT_S: Final = 10.0
#: Polls that are under way at a time.
POLLS_MAX: Final = 4

Body = Mapping[str, Any]


class ServerClient:
    """One server. The key, if any, goes with every request and into no message."""

    def __init__(self, url: str, settings: OpenAISettings) -> None:
        """Raises ``CannotStart``."""
        headers = {"Accept-Encoding": "identity", **bearer(settings.api_key_file)}
        wait_s = settings.connect_timeout_s
        self._jobs = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            trust_env=False,
            limits=_limits(settings.connections_max),
            timeout=httpx.Timeout(
                connect=wait_s, read=settings.silence_s, write=WRITE_TIMEOUT_S, pool=wait_s
            ),
        )
        self._polls = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            trust_env=False,
            limits=_limits(POLLS_MAX),
            timeout=httpx.Timeout(settings.poll_timeout_s),
        )

    async def close(self) -> None:
        """End all connections. Harmless twice."""
        await self._jobs.aclose()
        await self._polls.aclose()

    async def ask(self, path: str, *, post: bool = False) -> tuple[int, bytes]:
        """Status and body of a quick question. Raises ``ServerFault`` when there is no answer."""
        method = "POST" if post else "GET"
        async with _opened(self._polls, method, path) as response:
            return response.status_code, await _whole(response, ANSWER_BYTES_MAX)

    async def answer(self, path: str, body: Body, headers: Mapping[str, str]) -> dict[str, Any]:
        """The answer in one piece. Raises ``ServerFault`` or ``RequestBad``."""
        async with _opened(self._jobs, "POST", path, body, headers) as response:
            await _check(response)
            return _object(await _whole(response, ANSWER_BYTES_MAX))

    async def events(
        self, path: str, body: Body, headers: Mapping[str, str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed answer, up to its end or ``[DONE]``.

        Close the iterator to end the connection: that is how a server learns that nobody wants the
        rest. Raises ``ServerFault`` or ``RequestBad``.
        """
        async with _opened(self._jobs, "POST", path, body, headers) as response:
            await _check(response)
            stream = Events()
            try:
                async for data in response.aiter_raw():
                    for event in stream.feed(data):
                        if event == DONE:
                            return
                        yield _object(event)
            except EventTooLong as error:
                raise ServerFault(str(error)) from error


def _limits(connections: int) -> httpx.Limits:
    return httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30.0
    )


@asynccontextmanager
async def _opened(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    body: Body | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[httpx.Response]:
    content = None if body is None else orjson.dumps(body)
    given = {} if body is None else {"Content-Type": "application/json", **(headers or {})}
    try:
        async with client.stream(method, path, content=content, headers=given) as response:
            yield response
    except httpx.ConnectError as error:
        raise ServerFault(f"cannot connect: {error}", refused=True) from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise ServerFault(f"{type(error).__name__}: {error}") from error


async def _whole(response: httpx.Response, bytes_max: int) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > bytes_max:
            raise ServerFault(f"an answer of more than {bytes_max} bytes")
        parts.append(part)
    return b"".join(parts)


async def _check(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        return
    try:
        error = orjson.loads(await _whole(response, ERROR_BYTES_MAX))
    except (ServerFault, orjson.JSONDecodeError):
        error = None
    raise fault_of(response.status_code, error)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ServerFault(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ServerFault(f"no JSON object: {type(value).__name__}")
    if value.get("error"):
        code = value["error"].get("code") if isinstance(value["error"], dict) else None
        raise fault_of(code if isinstance(code, int) else 500, value)
    return value
