"""The older node service's documented calls, made literally, and what its document promises."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.show.fleet import Fleet
from tests.show.proof import Figure, Run

NODE = {
    "node_id": "node-7",
    "node_type": "worker",
    "node_address": "192.168.1.7",
    "node_port": 8001,
    "node_status": "online",
    "served_model_name": "qwen",
    "node_info": {"running": 3, "waiting": 1, "kv_cache": 1024},
    "remark": "rack 2",
    "timeout": 120,
}
DEFAULTS = {
    "node_type": "master",
    "node_address": "0.0.0.0",
    "node_port": 8000,
    "node_status": "offline",
    "node_info": {"running": 0, "waiting": 0, "kv_cache": 0},
    "timeout": 60,
}
TRACE = "trace-4711"


@dataclass(slots=True)
class Calls:
    """Each call with what was promised; what came otherwise."""

    client: httpx.AsyncClient
    token: str = ""
    made: int = 0
    wrong: list[str] = field(default_factory=list)

    async def call(
        self,
        method: str,
        path: str,
        code: int,
        promised: Callable[[dict[str, Any]], bool] = lambda _: True,
        *,
        token: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """One call; its envelope is checked field by field."""
        headers = {"X-Trace-ID": TRACE}
        if (token := self.token if token is None else token) != "":
            headers["Authorization"] = f"Bearer {token}"
        answer = await self.client.request(method, path, headers=headers, **more)
        self.made += 1
        try:
            envelope: dict[str, Any] = answer.json()
        except json.JSONDecodeError:
            envelope = {}
        word = "success" if code == 200 else "error"
        right = (
            answer.status_code == envelope.get("code") == code
            and envelope.get("message") == envelope.get("status") == word
            and envelope.get("trace_id") == TRACE
            and (("data" in envelope) if code == 200 else bool(envelope.get("error")))
            and set(envelope) <= {"message", "status", "code", "data", "error", "trace_id"}
            and promised(envelope)
        )
        if not right:
            self.wrong.append(f"{method} {path}: {answer.status_code} {answer.text[:120]}")
        return envelope


def _has(values: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    return lambda envelope: all(envelope["data"].get(k) == v for k, v in values.items())


def _gives(data: str) -> Callable[[dict[str, Any]], bool]:
    return lambda envelope: bool(envelope["data"] == data)


def _says(error: str) -> Callable[[dict[str, Any]], bool]:
    return lambda envelope: bool(envelope["error"] == error)


async def documented_calls(run: Run) -> Figure:
    """On a running yard, over HTTP."""
    async with Fleet(run.folder / "fleet", (), run.fault) as fleet:
        password = (fleet.data / "access" / "admin.password").read_text().strip()
        async with fleet.client() as client:
            calls = Calls(client)
            await _sessions(calls, password)
            await _nodes(calls)
    text = f"{calls.made - len(calls.wrong)} of {calls.made} calls answered as documented"
    if calls.wrong:
        text += f"; first otherwise: {calls.wrong[0]}"
    return Figure(text, not calls.wrong and calls.made > 20, {"wrong": calls.wrong})


async def _sessions(calls: Calls, password: str) -> None:
    login = "/api/user/login"
    said = {"username": "admin", "password": password}
    envelope = await calls.call("POST", login, 200, lambda e: bool(e["data"]["token"]), json=said)
    await calls.call(
        "POST", login, 401, _says("unauthorized"), json={"username": "eve", "password": "x"}
    )
    await calls.call("POST", login, 401, _says("unauthorized"), json={"username": "admin"})
    await calls.call("POST", login, 400, content=b"{")
    await calls.call("GET", login, 405)
    everything = "/api/node/node/all"
    await calls.call("GET", everything, 401, _says("Token required"), token="")
    await calls.call("GET", everything, 401, _says("Invalid token"), token="rubbish")
    data = envelope.get("data") or {}
    forged = data.get("token", "")[:-4] + "AAAA"
    await calls.call("GET", everything, 401, _says("Invalid token"), token=forged)
    calls.token = data.get("token", "")


async def _nodes(calls: Calls) -> None:
    base = "/api/node/node"

    async def register(body: dict[str, Any], promised: dict[str, Any]) -> dict[str, Any]:
        return await calls.call("POST", f"{base}/register", 200, _has(promised), json=body)

    async def update(body: dict[str, Any], promised: dict[str, Any]) -> None:
        await calls.call("PUT", f"{base}/update/node-7", 200, _has(promised), json=body)

    await calls.call("GET", f"{base}/all", 200, lambda e: bool(e["data"] == []))
    await register(NODE, NODE)
    await register({"node_id": "node-8"}, DEFAULTS | {"node_id": "node-8"})
    made = await register({}, DEFAULTS)
    named = (made.get("data") or {}).get("node_id", "")
    await calls.call("GET", f"{base}/all", 200, lambda e: len(e["data"]) == 3)
    for path in ("get_node", "status"):
        await calls.call("GET", f"{base}/{path}/node-7", 200, _has(NODE))
        await calls.call("GET", f"{base}/{path}/none", 404, _says("node not found"))
    # Every field may be left out, and what is left out stays.
    await update({"remark": "rack 3"}, NODE | {"remark": "rack 3"})
    info = {"running": 9, "waiting": 2, "kv_cache": 2048}
    after = NODE | {"remark": "rack 3", "node_info": info}
    await update({"node_info": info}, after)
    await calls.call("GET", f"{base}/get_node/node-7", 200, _has(after))
    await calls.call(
        "PUT", f"{base}/update/none", 404, _says("node not found"), json={"remark": "x"}
    )
    await calls.call("PUT", f"{base}/update/node-7", 400, json={"node_port": 99999})
    await calls.call("PUT", f"{base}/update/node-7", 400, json={"no_such_field": 1})
    await calls.call("POST", f"{base}/update/node-7", 405, json={})
    for node in ("node-7", "node-8", named):
        await calls.call("DELETE", f"{base}/delete/{node}", 200, _gives(node))
    await calls.call("DELETE", f"{base}/delete/node-7", 404, _says("node not found"))
    await calls.call("GET", f"{base}/all", 200, lambda e: bool(e["data"] == []))
