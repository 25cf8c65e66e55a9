"""Engines elsewhere that fail, die and come back behind a whole `up`: what a client sees of it.

Two servers of token ids, an agent for each, and every process and permission real. The servers make
each token of all before it, so that a token too many, too few or from elsewhere shows in the text.
"""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.integration.cli.yards import Yard, until, yard
from tests.support.openai_server import Fault, OpenAIServer
from tests.support.sglang_server import told
from tests.support.word_tokenizer import write_word_tokenizer

pytestmark = pytest.mark.timeout(180)
PROMPT = list(range(300, 320))
TOKENS = 80
RETRIES = 3


class Elsewhere:
    """Two servers in a loop and thread of their own, as if on hosts of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.servers = [OpenAIServer(itl_s=0.01) for _ in range(2)]
        for server in self.servers:
            self.do(server.start())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def asked(self) -> list[int]:
        """How many requests for tokens each has had."""
        return [len(server.requests) for server in self.servers]

    def close(self) -> None:
        for server in self.servers:
            self.do(server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@dataclass
class Here:
    yard: Yard
    elsewhere: Elsewhere

    def client(self) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(trust_env=False)
        return openai.OpenAI(
            base_url=f"{self.yard.url}/v1", api_key="none", max_retries=0, http_client=http
        )

    def ask(self, tokens: int = 4) -> Any:
        """One answer in one."""
        with self.client() as client:
            return client.completions.create(model="m", prompt=PROMPT, max_tokens=tokens)

    def steps(self, request_id: str) -> list[dict[str, Any]]:
        """What the history has of a request."""
        told_by = self.yard.run("explain", request_id, "--json").stdout
        steps: list[dict[str, Any]] = json.loads(told_by)["steps"]
        return steps


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("elsewhere")
    elsewhere = Elsewhere()
    (folder / "yard.toml").write_text(
        f"[gateway]\ninterruptions_max = {RETRIES}\n"
        f'[worker.openai]\ntokenizer_dir = "{write_word_tokenizer(folder)}"\n'
        "poll_s = 0.05\npoll_timeout_s = 0.5\nconnect_timeout_s = 1.0\n"
    )
    addresses = ",".join(f"127.0.0.1:{server.port}" for server in elsewhere.servers)
    words = ("--model", "m", "--aggregated-addrs", addresses, "--config", str(folder / "yard.toml"))
    try:
        with yard(folder / "data", *words) as running:
            yield Here(running, elsewhere)
    finally:
        elsewhere.close()


def story(tokens: int) -> str:
    return "".join(f" t{token}" for token in told(PROMPT, tokens)[0])


def uses_both(here: Here) -> bool:
    """Does each of the two get one of two requests?"""
    before = here.elsewhere.asked()
    texts = [here.ask().choices[0].text for _ in range(4)]
    assert texts == [story(4)] * 4
    return all(now > then for now, then in zip(here.elsewhere.asked(), before, strict=True))


def test_an_engine_that_dies_in_mid_stream_is_followed_by_another_once_and_used_again_when_back(
    here: Here,
):
    until(lambda: uses_both(here), "both engines are used")
    before = here.elsewhere.asked()
    with here.client() as client:
        stream = client.completions.create(model="m", prompt=PROMPT, max_tokens=TOKENS, stream=True)
        request_id = stream.response.headers["x-request-id"]
        texts = [next(stream).choices[0].text for _ in range(5)]
        (dies,) = [s for s in here.elsewhere.servers if s.running]
        (lives,) = [s for s in here.elsewhere.servers if s is not dies]
        here.elsewhere.do(dies.stop())
        texts += [choice.text for chunk in stream for choice in chunk.choices]
    assert "".join(texts) == story(TOKENS)
    # One attempt at each, and the second one began where the first had come to.
    assert [now - then for now, then in zip(here.elsewhere.asked(), before, strict=True)] == [1, 1]
    taken_up = lives.requests[-1]["prompt"]
    emitted = len(taken_up) - len(PROMPT)
    assert 5 <= emitted < TOKENS
    assert taken_up == PROMPT + told(PROMPT, emitted)[0]
    until(lambda: "finished" in {s["step"] for s in here.steps(request_id)}, "its end is kept")
    steps = here.steps(request_id)
    assert [s["step"] for s in steps].count("interrupted") == 1
    (finished,) = [s["detail"] for s in steps if s["step"] == "finished"]
    assert (finished["attempts"], finished["completion_tokens"]) == (2, TOKENS)
    # While it is away the other one serves alone.
    assert [here.ask().choices[0].text for _ in range(4)] == [story(4)] * 4
    here.elsewhere.do(dies.start(dies.port))
    until(lambda: uses_both(here), "the one that was away is used again")


def test_an_engine_that_says_it_is_unwell_is_left_until_it_is_well(here: Here):
    sick, well = here.elsewhere.servers
    sick.healthy = False
    until(lambda: "aggregated-0: degraded" in here.yard.status()["problems"], "its agent says so")
    asked = len(sick.requests)
    before = len(well.requests)
    assert [here.ask().choices[0].text for _ in range(6)] == [story(4)] * 6
    assert (len(sick.requests), len(well.requests)) == (asked, before + 6)
    sick.healthy = True
    until(lambda: uses_both(here), "it is used again")


def test_when_every_attempt_fails_the_client_is_told_after_so_many_and_the_next_one_is_served(
    here: Here,
):
    until(lambda: uses_both(here), "both engines are used")
    before = sum(here.elsewhere.asked())
    for server in here.elsewhere.servers:
        server.faults += [Fault("reset")] * (RETRIES + 1)
    with pytest.raises(openai.InternalServerError) as caught:
        here.ask(TOKENS)
    assert (caught.value.status_code, caught.value.code) == (502, "too_many_attempts")
    assert sum(here.elsewhere.asked()) - before == RETRIES + 1
    for server in here.elsewhere.servers:
        server.faults.clear()
        assert server.running == 0
    assert here.ask(TOKENS).choices[0].text == story(TOKENS)
