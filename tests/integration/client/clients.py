"""One `up` for all tests of clients: every process real, every permission in force."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.client import Client
from tests.integration.cli.yards import FAST, Yard, yard

MODEL = "sim/words"
HELLO: list[Any] = [{"role": "user", "content": "Which track is free?"}]
CALL: dict[str, Any] = {"model": MODEL, "max_tokens": 40, "seed": 5, "ignore_eos": True}
LONG: dict[str, Any] = {**CALL, "max_tokens": 20_000}


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "yard.toml").write_text('[up]\nclients = ["default", "acme"]\n')
    with yard(folder / "data", "--profile", FAST, "--config", str(folder / "yard.toml")) as here:
        yield here


def key_of(up: Yard, tenant: str) -> Path:
    return Path(up.page().keys_dir) / f"client-{tenant}.nk"


def client_of(up: Yard, tenant: str = "default", **options: Any) -> Client:
    return Client(up.page().nats_url, tenant=tenant, key_file=key_of(up, tenant), **options)


def over_http(up: Yard, path: str, **body: Any) -> Any:
    with up.client() as http:
        return http.post(path, json=body).json()


async def running(up: Yard) -> int:
    """Requests that the gateway has, by its own word."""
    with up.client() as http:
        return int(http.get("/health").json()["running"])


async def idle(up: Yard) -> None:
    async with asyncio.timeout(5):
        while await running(up):  # noqa: ASYNC110  (what changes is in another process)
            await asyncio.sleep(0.05)
