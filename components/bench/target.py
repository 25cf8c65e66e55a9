"""Where the load goes, and what one request for it looks like."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import orjson

from components.bench.client import Connection, Exchange, clock_s
from components.bench.prompts import (
    WORDS,
    ChatPrompts,
    IdPrompts,
    Prompts,
    WordCost,
    words_message,
)
from components.bench.records import Record
from components.domain.addresses import is_loopback

Api = Literal["chat", "completions"]
PATHS: Final[dict[Api, str]] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
CONNECT_TIMEOUT_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 60.0


class BadTarget(ValueError):
    """The address cannot be measured."""


class Unreachable(Exception):
    """Nothing useful answers at the address."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes, and the API key that it is sent with; empty: none."""

    host: str
    port: int
    api_key: str = ""

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @classmethod
    def from_url(cls, url: str, *, allow_remote: bool = False, api_key: str = "") -> "Target":
        """Raises ``BadTarget`` for what is not ``http://HOST[:PORT]``, or not of this machine."""
        if not api_key.isascii() or any(c.isspace() for c in api_key):
            raise BadTarget("an API key has no spaces and is ASCII")
        parts = urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError as error:
            raise BadTarget(f"{url}: {error}") from error
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise BadTarget(f"{url} is not of the form http://HOST:PORT")
        if not (allow_remote or is_loopback(parts.hostname)):
            raise BadTarget(
                f"{parts.hostname} is not this machine; --allow-remote if the load is welcome there"
            )
        return cls(parts.hostname, port, api_key)


def request_bytes(
    target: Target, api: Api, model: str, prompt: dict[str, Any], output_tokens: int
) -> bytes:
    """A streamed request for exactly ``output_tokens`` tokens."""
    body = orjson.dumps(
        {
            "model": model,
            **prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    more = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    head = (
        f"POST {PATHS[api]} HTTP/1.1\r\nhost: {target.authority}\r\n{more}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask_server(target: Target, model: str | None, api: Api, seed: int) -> tuple[str, Prompts]:
    """The model (its first unless named) and prompts for it; raises ``Unreachable``.

    For chat the server is asked what words cost.
    """

    async def asked() -> tuple[str, Prompts]:
        name = model or await _first_model(target)
        if api == "completions":
            return name, IdPrompts(seed)
        return name, ChatPrompts(seed, await _word_cost(target, name))

    return asyncio.run(asked())


async def _first_model(target: Target) -> str:
    import httpx  # noqa: PLC0415  (only when the model is not named)

    url = f"http://{target.authority}/v1/models"
    try:
        # Never through a proxy: what is measured is the address itself.
        async with httpx.AsyncClient(trust_env=False, timeout=CONNECT_TIMEOUT_S) as client:
            answer = (await client.get(url, headers=target.headers)).raise_for_status()
            return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise Unreachable(f"{url} lists no model: {error}") from error


async def _word_cost(target: Target, model: str) -> WordCost:
    seen = [(words, await _prompt_tokens(target, model, words)) for words in (16, 80)]
    return WordCost.measured(*seen)


async def _prompt_tokens(target: Target, model: str, words: int) -> int:
    """What a chat of so many words comes to, template included, as the server counts."""
    prompt = words_message([WORDS[place % len(WORDS)] for place in range(words)])
    record = Record(0, 0.0, words, 1)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, connection = await loop.create_connection(Connection, target.host, target.port)
            exchange = Exchange(record, clock_s())
            connection.send(request_bytes(target, "chat", model, prompt, 1), exchange)
            await exchange.ended
            connection.close()
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"{target.authority}: {error}") from error
    if not record.ok or record.prompt_tokens_seen is None:
        raise Unreachable(f"a first chat failed: {record.error} {record.error_text}")
    return record.prompt_tokens_seen
