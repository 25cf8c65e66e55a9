"""The registry's REST API where its registry keeps no accounts, or cannot read them yet."""

import httpx

from bus import subjects
from bus.memory_bus import MemoryBus
from schemas.access import Login, LoginReply
from tests.integration.gateway.fleet import running_gateway


async def log_in(url: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url) as client:
        said = {"username": "admin", "password": "correct horse"}
        return await client.post("/api/user/login", json=said)


async def test_a_login_where_nobody_keeps_accounts_says_what_is_missing():
    async with running_gateway() as yard:
        answer = await log_in(yard.url)
        assert answer.status_code == 503
        assert answer.json()["error"] == "no registry keeps accounts now (registry.access_dir)"


async def test_a_login_before_accounts_are_read_says_when_to_come_back():
    async with running_gateway() as yard:
        registry = MemoryBus(yard.hub, source="registry-0", epoch=1)
        await registry.connect()
        refusal = LoginReply(refusal="store_away", retry_after_s=15)
        await registry.subscribe(
            subjects.login(), Login, lambda asked: registry.respond(asked, refusal)
        )
        answer = await log_in(yard.url)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "15")
        assert answer.json()["error"] == "accounts are not read yet"
        await registry.close()
