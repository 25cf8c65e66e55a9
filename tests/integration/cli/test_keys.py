"""API keys as users meet them: `switchyard keys`, and a yard that lets nobody in without one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from components.cli.keys import state_of
from schemas.examples import API_KEY
from tests.integration.cli.yards import FAST, Yard, called, until, yard

pytestmark = pytest.mark.timeout(180)
HELLO: list[Any] = [{"role": "user", "content": "Which track is free?"}]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "yard.toml").write_text('[gateway]\napi_keys = "required"\n')
    with yard(folder / "data", "--profile", FAST, "--config", str(folder / "yard.toml")) as running:
        yield running


def made(here: Yard, tenant: str, *words: str) -> str:
    done = here.run("keys", "make", tenant, *words)
    assert done.returncode == 0, done.stderr
    return str(done.stdout.strip())


def client(here: Yard, key: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{here.url}/v1",
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def chat(here: Yard, key: str) -> str:
    """The request's name in the fleet."""
    with client(here, key) as asking:
        answer = asking.chat.completions.create(model="sim/words", messages=HELLO, max_tokens=4)
    return "req-" + answer.id.split("-", 1)[1]


def refusal(here: Yard, key: str) -> str | None:
    """The code with which the key is refused; None when it lets in."""
    try:
        chat(here, key)
    except openai.AuthenticationError as error:
        return error.code
    return None


def test_each_tenant_asks_with_its_own_key_and_stands_in_the_history_with_its_name(here: Yard):
    for tenant in ("acme", "globex"):
        name = chat(here, made(here, tenant))

        def explained(name: str = name) -> dict[str, Any]:
            done = here.run("explain", name, "--json")
            found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
            return found

        found = until(explained, "the request is explained")
        assert found["tenant"] == tenant


def test_a_revoked_key_is_refused_within_a_moment_and_nobody_is_let_in_without(here: Yard):
    key = made(here, "acme", "--name", "to be revoked")
    chat(here, key)
    revoked = here.run("keys", "revoke", key)
    assert revoked.returncode == 0, revoked.stderr
    assert until(lambda: refusal(here, key), "it is refused", 2.0) == "invalid_api_key"
    assert httpx.get(f"{here.url}/v1/models").json()["error"]["code"] == "missing_api_key"
    assert here.run("keys", "revoke", "0" * 12).returncode == 1
    assert here.run("keys", "revoke", "nonsense").returncode == 1


def test_keys_are_listed_without_what_proves_them(here: Yard):
    key = made(here, "hooli", "--name", "batch jobs", "--expires", "90d")
    listed = json.loads(here.run("keys", "list", "--tenant", "hooli", "--json").stdout)
    (one,) = listed
    assert (one["tenant"], one["name"], one["state"]) == ("hooli", "batch jobs", "good")
    assert one["expires_ms"] - one["created_ms"] == pytest.approx(90 * 86_400_000, abs=60_000)
    page = here.run("keys", "list").stdout
    assert one["key_id"] in page
    assert key.rsplit("-", 1)[1] not in page + json.dumps(listed)
    kept = b"".join(file.read_bytes() for file in Path(here.data).rglob("*") if file.is_file())
    secret = key.split("-", 2)[2]
    assert secret.encode() not in kept


def test_the_commands_that_ask_over_http_send_the_key_that_is_in_the_environment(
    here: Yard, monkeypatch: pytest.MonkeyPatch
):
    bench = ("bench", "serve", "--url", here.url, "--requests", "4", "--concurrency", "2")
    refused = here.run("test")
    assert refused.returncode == 1
    assert "OPENAI_API_KEY" in refused.stderr
    monkeypatch.setenv("OPENAI_API_KEY", made(here, "acme"))
    assert here.run("test").returncode == 0
    measured = called(*bench, "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["ok"] == 4


@pytest.mark.parametrize("words", [("make", "two words"), ("make", "acme", "--expires", "soon")])
def test_what_cannot_be_a_key_is_a_mistake_of_the_command(here: Yard, words: tuple[str, ...]):
    done = here.run("keys", *words)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_key_is_good_until_it_ends_or_is_revoked():
    assert state_of(API_KEY, API_KEY.expires_ms - 1) == "good"
    assert state_of(API_KEY, API_KEY.expires_ms) == "ended"
    revoked = API_KEY.model_copy(update={"revoked_ms": 5})
    assert state_of(revoked, API_KEY.expires_ms) == "revoked"
