"""Nodes and accounts as users meet them: over HTTP, and by `switchyard nodes` and `users`."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bus.records import Record, Records
from tests.integration.cli.yards import FAST, Yard, until, yard
from tests.show.nvllm import Calls, _nodes, _sessions

pytestmark = pytest.mark.timeout(180)
ORIGIN = "https://console.example"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "yard.toml").write_text(
        f'[gateway]\ncors_origins = ["{ORIGIN}"]\n[registry]\nlogin_per_user_min = 100\n'
        "login_per_address_min = 100\n[up.history.FLEET]\nage_s = 3600\n"
    )
    config = ("--config", str(folder / "yard.toml"))
    with yard(folder / "data", "--profile", FAST, *config) as running:
        yield running


def password(here: Yard) -> str:
    return (Path(here.data) / "access" / "admin.password").read_text().strip()


def token(here: Yard) -> str:
    said = {"username": "admin", "password": password(here)}
    answer = httpx.post(f"{here.url}/api/user/login", json=said)
    found: str = answer.json()["data"]["token"]
    return found


def test_the_documented_calls_answer_as_documented(here: Yard):
    async def make() -> Calls:
        async with httpx.AsyncClient(base_url=here.url) as client:
            calls = Calls(client)
            await _sessions(calls, password(here))
            await _nodes(calls)
            return calls

    calls = asyncio.run(make())
    assert (calls.wrong, calls.made) == ([], 29)


def test_a_forged_or_foreign_token_is_refused(here: Yard):
    good = token(here)
    claims = jwt.decode(good, options={"verify_signature": False})
    kid = jwt.get_unverified_header(good)["kid"]
    other = Ed25519PrivateKey.generate()
    forged = [
        jwt.encode(claims, other, algorithm="EdDSA", headers={"kid": kid}),
        jwt.encode(claims, other, algorithm="EdDSA", headers={"kid": "unknown"}),
        jwt.encode(claims, "secret" * 8, algorithm="HS256", headers={"kid": kid}),
        jwt.encode(claims, "", algorithm="none", headers={"kid": kid}),
    ]
    for bad in forged:
        headers = {"Authorization": f"Bearer {bad}"}
        answer = httpx.get(f"{here.url}/api/node/node/all", headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "Invalid token")


def test_pages_of_listed_origins_may_ask(here: Yard):
    path = f"{here.url}/api/node/node/all"
    preflight = httpx.options(path, headers={"Origin": ORIGIN})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "GET" in preflight.headers["access-control-allow-methods"]
    refused = httpx.get(path, headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)
    foreign = httpx.options(path, headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in foreign.headers


def test_nodes_are_declared_changed_and_deleted_from_the_command_line(here: Yard):
    made = here.run("nodes", "register", "n1", "--field", "node_address=10.0.0.1", "--json")
    revision = json.loads(made.stdout)["revision"]
    assert "n1" in here.run("nodes", "list").stdout
    changed = here.run(
        "nodes", "update", "n1", "--field", "state=READY", "--revision", revision, "--json"
    )
    assert json.loads(changed.stdout)["node_address"] == "10.0.0.1"
    late = here.run("nodes", "update", "n1", "--field", "remark=x", "--revision", revision)
    assert (late.returncode, "look again" in late.stderr) == (1, True)
    assert "state = DRAINING" in here.run("nodes", "drain", "n1").stdout
    wrong = here.run("nodes", "update", "n1", "--field", "node_port=0")
    assert (wrong.returncode, "node_port" in wrong.stderr) == (2, True)
    assert here.run("nodes", "delete", "n1").returncode == 0
    gone = here.run("nodes", "show", "n1")
    assert (gone.returncode, "there is no node" in gone.stderr) == (1, True)
    assert "no node is declared" in here.run("nodes", "list").stdout


def test_a_node_s_own_account_changes_itself_and_no_other(here: Yard, tmp_path: Path):
    (tmp_path / "password").write_text("correct horse\n")
    words = ("--role", "node", "--password-file", tmp_path / "password")
    assert here.run("users", "put", "n5", *words).returncode == 0
    said = {"username": "n5", "password": "correct horse"}
    answer = httpx.post(f"{here.url}/api/user/login", json=said)
    headers = {"Authorization": f"Bearer {answer.json()['data']['token']}"}
    register = f"{here.url}/api/node/node/register"
    mine = httpx.post(register, headers=headers, json={"node_id": "n5"})
    theirs = httpx.post(register, headers=headers, json={"node_id": "n6"})
    delete = httpx.delete(f"{here.url}/api/node/node/delete/n5", headers=headers)
    assert [a.status_code for a in (mine, theirs, delete)] == [200, 403, 403]
    fresh = httpx.post(
        f"{here.url}/api/user/refresh",
        json={"refresh_token": answer.json()["data"]["refresh_token"]},
    )
    assert fresh.status_code == 200
    assert here.run("users", "remove", "n5").returncode == 0
    assert httpx.post(f"{here.url}/api/user/login", json=said).status_code == 401
    missing = here.run("users", "put", "n7", "--role", "node")
    assert (missing.returncode, "needs a password" in missing.stderr) == (1, True)
    here.run("nodes", "delete", "n5")


def test_the_key_of_sessions_is_rotated_without_a_gap_or_at_once(here: Yard):
    def status(given: str) -> int:
        headers = {"Authorization": f"Bearer {given}"}
        return httpx.get(f"{here.url}/api/node/node/all", headers=headers).status_code

    before = token(here)
    assert status(before) == 200
    rotated = here.run("users", "rotate-key")
    assert (rotated.returncode, "count until they end" in rotated.stdout) == (0, True)
    between = token(here)
    kid = jwt.get_unverified_header(between)["kid"]
    assert f"key {kid} signs" in rotated.stdout
    assert [status(before), status(between)] == [200, 200]

    dropped = here.run("users", "rotate-key", "--now")
    assert (dropped.returncode, "within 60 s" in dropped.stdout) == (0, True)
    after = token(here)
    assert status(after) == 200
    # The gateway asked because of that one: it need not be waited for.
    assert [status(before), status(between)] == [401, 401]


def test_one_node_is_the_same_in_every_layer_from_the_path_to_the_record(here: Yard):
    headers = {"Authorization": f"Bearer {token(here)}", "X-Trace-ID": "layers-1"}
    fields = {"node_id": "layered", "node_address": "10.0.0.8", "remark": "rack 8"}
    register = f"{here.url}/api/node/node/register"

    # What stands before the paths: who asks, and the envelope.
    assert httpx.post(register, json=fields).json()["error"] == "Token required"
    answer = httpx.post(register, headers=headers, json=fields).json()
    assert (answer["code"], answer["trace_id"]) == (200, "layers-1")

    def without_times(node: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in node.items() if k not in {"create_time", "update_time"}}

    # The path's answer, the registry's to the question behind it, the record behind that.
    made = without_times(answer["data"])
    assert fields.items() <= made.items()
    asked = without_times(json.loads(here.run("nodes", "show", "layered", "--json").stdout))
    record = asyncio.run(record_of(here, "layered"))
    kept = without_times(json.loads(record.value))
    assert made == asked == {**kept, "revision": record.revision, "healthy": None}

    # And what those hear who only listen, with the trace of the call.
    def told() -> list[dict[str, Any]]:
        lines = here.run("events", "FLEET", "--json").stdout.splitlines()
        return [told for line in lines if (told := json.loads(line)).get("node_id") == "layered"]

    [event] = until(told, "the change is told")
    assert (event["revision"], event["trace_id"]) == (record.revision, "layers-1")
    assert here.run("nodes", "delete", "layered").returncode == 0


async def record_of(here: Yard, node: str) -> Record:
    key_file = Path(here.page().keys_dir) / "registry-0.nk"
    async with Records(here.page().nats_url, key_file, source="registry-0") as records:
        found = await records.get("nodes", node)
        assert found is not None
        return found


def test_more_nodes_than_one_page_holds_are_listed_whole_everywhere(here: Yard):
    names = [f"many-{number:03}" for number in range(501)]
    headers = {"Authorization": f"Bearer {token(here)}"}
    base = "/api/node/node"

    async def each(call: Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]) -> None:
        limits = httpx.Limits(max_connections=8)
        async with httpx.AsyncClient(base_url=here.url, headers=headers, limits=limits) as client:
            answers = await asyncio.gather(*(call(client, name) for name in names))
        assert {answer.status_code for answer in answers} == {200}

    def over_http(**asked: Any) -> list[str]:
        answer = httpx.get(f"{here.url}{base}/all", headers=headers, params=asked)
        return [node["node_id"] for node in answer.json()["data"]]

    asyncio.run(each(lambda client, n: client.post(f"{base}/register", json={"node_id": n})))
    try:
        assert over_http() == names
        assert over_http(after="many-250") == names[251:]
        assert over_http(limit=3, after="many-499") == ["many-500"]
        listed = here.run("nodes", "list", "--json").stdout
        assert [node["node_id"] for node in json.loads(listed)] == names
    finally:
        asyncio.run(each(lambda client, n: client.delete(f"{base}/delete/{n}")))


def test_the_history_is_shown_with_the_limits_that_were_chosen(here: Yard):
    shown = json.loads(here.run("history", "--json").stdout)
    ages = {stream["name"]: stream["age_max_s"] for stream in shown["streams"]}
    assert (shown["state"], ages["FLEET"], ages["REQUESTS"]) == ("ok", 3600, 7 * 86_400)
    text = here.run("history").stdout
    assert "the history is ok" in text
    assert "0 gaps since the auditor started" in text
    health = httpx.get(f"{here.url}/health").json()
    assert health["history"] == "ok"
