"""Short looks at a yard from outside: does it answer, is everyone ready?"""

import asyncio
import contextlib
import http.client
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bus.bus import Bus
from bus.errors import BusError
from bus.subjects import show_component, show_history
from components.cli.operator_bus import connected
from schemas.fleet import ShowComponent, ShowComponentReply
from schemas.history import ShowHistory, ShowHistoryReply

HTTP_TIMEOUT_S: Final = 2.0
ASK_TIMEOUT_S: Final = 1.0
ANSWER_BYTES_MAX: Final = 1024 * 1024
GREETING_BYTES_MAX: Final = 65_536


def http_get(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Status and body of a GET; None when nobody answers in HTTP. Blocks."""
    connection = http.client.HTTPConnection(host, port, timeout=HTTP_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


async def takes_requests(host: str, port: int) -> bool:
    """Does the gateway say that a request will succeed?"""
    answer = await asyncio.to_thread(http_get, host, port, "/ready")
    return answer is not None and answer[0] == 200


async def models(host: str, port: int) -> list[str]:
    """The models that the gateway lists; none when it cannot be asked."""
    answer = await asyncio.to_thread(http_get, host, port, "/v1/models")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        listed: dict[str, Any] = json.loads(answer[1] if answer else b"{}")
        return [str(model["id"]) for model in listed["data"]]
    return []


async def not_ready(
    nats_url: str, key_file: Path | None, prefix: str, instances: Collection[str]
) -> list[str]:
    """Who of these does not say ``ready`` to the operator just now."""

    async def is_ready(bus: Bus, instance: str) -> bool:
        try:
            reply = await bus.ask(
                show_component(instance),
                ShowComponent(),
                ShowComponentReply,
                timeout_s=ASK_TIMEOUT_S,
            )
        except BusError:
            return False
        return reply.heartbeat.state == "ready"

    try:
        async with connected(nats_url, key_file, prefix) as bus:
            answers = await asyncio.gather(*(is_ready(bus, name) for name in instances))
    except BusError:
        return sorted(instances)
    return sorted(n for n, ready in zip(instances, answers, strict=True) if not ready)


async def history(nats_url: str, key_file: Path | None, prefix: str) -> ShowHistoryReply | None:
    """What the auditor says of the history; None when it cannot be asked."""
    try:
        async with connected(nats_url, key_file, prefix) as bus:
            return await bus.ask(
                show_history(), ShowHistory(), ShowHistoryReply, timeout_s=ASK_TIMEOUT_S
            )
    except BusError:
        return None


async def nats_info(url: str) -> dict[str, Any]:
    """What the first server of ``url`` says in its greeting; empty when it says nothing."""
    parts = urlsplit(url.split(",", maxsplit=1)[0].strip())
    try:
        async with asyncio.timeout(HTTP_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 4222, limit=GREETING_BYTES_MAX
            )
            try:
                line = await reader.readline()
            finally:
                writer.close()
        info: dict[str, Any] = json.loads(line.removeprefix(b"INFO "))
        return info
    except (OSError, TimeoutError, ValueError):
        return {}
