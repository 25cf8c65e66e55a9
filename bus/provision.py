"""Create or mend streams and buckets. Running it again changes nothing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client
from nats.errors import Error as NatsError

from bus import keys
from bus.endpoint import log, server_urls
from bus.errors import NotConnected, StreamUnavailable
from bus.nats_client import SteadyClient, end
from bus.permissions import inbox_prefix
from bus.streams import BUCKETS, STREAMS, Bucket, Stream
from bus.subjects import PREFIX

#: How long JetStream may take to be up; a cluster elects leaders for some seconds.
READY_TIMEOUT_S: Final = 15.0
_REQUEST_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.1
_NOT_FOUND: Final = 10059  # JetStream's code for "stream not found"


@dataclass(slots=True)
class Provisioned:
    """Names of streams, by what was done to them."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


async def provision(
    url: str,
    key_file: Path | None = None,
    *,
    prefix: str = PREFIX,
    replicas: int = 1,
    wanted: Iterable[Stream | Bucket] = (*STREAMS, *BUCKETS),
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Provisioned:
    """Make JetStream hold ``wanted``; waits for it to be up.

    Raises ``NotConnected`` without a server and ``StreamUnavailable`` when JetStream refuses.
    """
    done = Provisioned()
    async with _connected(url, key_file, ready_timeout_s) as client:
        await _until_ready(client, ready_timeout_s)
        for item in wanted:
            config = item.config(prefix, replicas)
            (await _apply(client, config, done)).append(config["name"])
    log.info("streams: %s", done)
    return done


async def _apply(client: Client, wanted: dict[str, Any], done: Provisioned) -> list[str]:
    name = wanted["name"]
    info = await _ask(client, f"STREAM.INFO.{name}", {})
    if _error_code(info) == _NOT_FOUND:
        _checked(name, await _ask(client, f"STREAM.CREATE.{name}", wanted))
        return done.created
    found = _checked(name, info)["config"]
    if all(_same(found.get(key), value) for key, value in wanted.items()):
        return done.unchanged
    # What we do not name stays as somebody set it.
    _checked(name, await _ask(client, f"STREAM.UPDATE.{name}", {**found, **wanted}))
    return done.updated


def _same(found: Any, wanted: Any) -> bool:
    # The server leaves out what is false or zero.
    return found == wanted or (found is None and not wanted)


def _error_code(answer: dict[str, Any]) -> int | None:
    code = answer.get("error", {}).get("err_code")
    return code if isinstance(code, int) else None


def _checked(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise StreamUnavailable(f"{name}: {answer['error'].get('description', answer['error'])}")
    return answer


async def _ask(client: Client, what: str, payload: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(payload).encode() if payload else b""
    try:
        answer = await client.request(f"$JS.API.{what}", data, timeout=_REQUEST_TIMEOUT_S)
    except (NatsError, OSError) as error:
        raise StreamUnavailable(f"{what}: {type(error).__name__}: {error}") from error
    values: dict[str, Any] = json.loads(answer.data)
    return values


async def _until_ready(client: Client, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(StreamUnavailable):
                    if "error" not in await _ask(client, "INFO", {}):
                        return
                await asyncio.sleep(_RETRY_S)
    except TimeoutError:
        raise StreamUnavailable(f"JetStream not ready within {timeout_s:g} s") from None


@asynccontextmanager
async def _connected(url: str, key_file: Path | None, timeout_s: float) -> AsyncIterator[Client]:
    options: dict[str, Any] = {}
    if key_file is not None:
        keys.load(key_file)
        options["nkeys_seed"] = str(key_file)
    urls = server_urls(url)
    client = SteadyClient()
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(
                urls,
                name="provisioner",
                inbox_prefix=inbox_prefix("provisioner", "provisioner"),
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                error_cb=_quiet,
                **options,
            )
        yield client
    except (TimeoutError, NatsError, OSError) as error:
        raise NotConnected(f"{url}: {client.last_error or error}") from error
    finally:
        await end(client)


async def _quiet(error: Exception) -> None:
    log.debug("provisioner: %s: %s", type(error).__name__, error)
