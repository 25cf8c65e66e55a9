"""deploy/CLIENTS.md, done: its lines are sent as they stand there, by clients with only those."""

import asyncio
import base64
import itertools
import json
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import nkeys
import pytest

from tests.integration.cli.yards import Yard
from tests.integration.client.clients import HELLO, MODEL, key_of, over_http

PAGE = (Path(__file__).parents[3] / "deploy" / "CLIENTS.md").read_text()


def examples() -> Iterator[list[str]]:
    """The indented blocks of the page, each as its lines."""
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.MULTILINE):
        yield [line[4:] for line in block.strip("\n").splitlines()]


def block(beginning: str) -> list[str]:
    (found,) = (lines for lines in examples() if lines[0].startswith(beginning))
    return found


class Raw:
    """A client with nothing but a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def line(self) -> str:
        async with asyncio.timeout(10):
            return (await self.reader.readline()).decode().rstrip("\r\n")

    def say(self, *lines: str) -> None:
        self.writer.write("".join(f"{line}\r\n" for line in lines).encode())

    async def connect(self, seed: bytes) -> None:
        """Sign the server's nonce with the key."""
        info = json.loads((await self.line()).removeprefix("INFO "))
        pair = nkeys.from_seed(bytearray(seed))
        signature = base64.urlsafe_b64encode(pair.sign(info["nonce"].encode())).decode()
        options = {"verbose": False, "pedantic": False, "nkey": pair.public_key.decode()}
        self.say("CONNECT " + json.dumps(options | {"sig": signature.rstrip("=")}), "PING")
        assert await self.line() == "PONG"

    async def message(self) -> Any:
        """The JSON of the next message; a refusal of the server fails."""
        while (line := await self.line()) in {"PING", "PONG"}:
            self.say("PONG")
        verb, subject, *_, size = line.split(" ")
        assert (verb, subject) == ("MSG", "_INBOX_client.default.mine.1"), line
        async with asyncio.timeout(10):
            data = await self.reader.readexactly(int(size) + 2)
        return json.loads(data)


@asynccontextmanager
async def raw(up: Yard) -> AsyncIterator[Raw]:
    address = urlsplit(up.page().nats_url)
    seed = key_of(up, "default").read_bytes().strip()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    client = Raw(reader, writer)
    try:
        await client.connect(seed)
        yield client
    finally:
        writer.close()
        await writer.wait_closed()


def test_the_byte_counts_on_the_page_are_right() -> None:
    counted = 0
    for lines in examples():
        for line, payload in itertools.pairwise(lines):
            if line.startswith("PUB "):
                assert int(line.rsplit(" ", 1)[1]) == len(payload.encode()), line
                counted += 1
    assert counted == 2


async def test_the_bare_protocol_streams_an_answer(up: Yard) -> None:
    async with raw(up) as client:
        client.say(*block("SUB "))
        messages = [await client.message()]
        while not messages[-1].get("done"):
            messages.append(await client.message())
    assert [m["n"] for m in messages] == list(range(len(messages)))
    assert list(messages[0]) == ["n", "requests"]
    chunks = [c for m in messages for c in m.get("chunks", ())]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    whole = over_http(up, "/v1/chat/completions", model=MODEL, messages=HELLO, max_tokens=8)
    assert text == whole["choices"][0]["message"]["content"]
    assert messages[-1]["usage"] == whole["usage"]


async def test_the_bare_protocol_cancels(up: Yard) -> None:
    subscribe, publish, payload = block("SUB ")
    longer = payload.replace('"max_tokens":8', '"max_tokens":20000,"ignore_eos":true')
    async with raw(up) as client:
        client.say(subscribe, publish.rsplit(" ", 1)[0] + f" {len(longer)}", longer)
        for _ in range(5):
            await client.message()
        client.say(*block("PUB "))
        async with asyncio.timeout(5):
            while True:  # what was on its way still comes, then nothing
                try:
                    async with asyncio.timeout(0.5):
                        await client.reader.readexactly(1)
                except TimeoutError:
                    break


@pytest.mark.parametrize("line", block("nats req "))
async def test_each_request_on_the_page_is_answered(up: Yard, line: str) -> None:
    _, _, subject, payload = shlex.split(line)
    client = await nats.connect(
        up.page().nats_url,
        nkeys_seed=str(key_of(up, "default")),
        inbox_prefix="_INBOX_client.default",
    )
    answer = json.loads((await client.request(subject, payload.encode(), timeout=10)).data)
    await client.close()
    assert "error" not in answer
    assert answer.keys() & {"choices", "processes", "card", "engines", "found"}


async def test_the_python_on_the_page_runs(up: Yard, capsys: pytest.CaptureFixture[str]) -> None:
    lines = block("from components.client")
    there = up.page()
    code = "\n".join(f"    {line}" for line in lines).replace("Once", "once")
    code = code.replace("nats://127.0.0.1:4222", there.nats_url)
    code = code.replace("client-default.nk", str(key_of(up, "default")))
    names: dict[str, Any] = {"Path": Path}
    exec(f"async def example():\n{code}\n    return answer, fleet", names)
    answer, fleet = await names["example"]()
    hello = [{"role": "user", "content": "Hello"}]
    said = over_http(up, "/v1/chat/completions", model=MODEL, messages=hello, max_tokens=8)
    assert capsys.readouterr().out == said["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 8
    assert fleet.processes


@pytest.mark.parametrize("payload", [b"{", b"[1]", b"\x91", b'{"more": 1}'])
async def test_a_question_that_is_none_gets_a_code_or_nothing(up: Yard, payload: bytes) -> None:
    client = await nats.connect(
        up.page().nats_url,
        nkeys_seed=str(key_of(up, "default")),
        inbox_prefix="_INBOX_client.default",
    )
    try:
        answer = await client.request("yard.ask.fleet.show", payload, timeout=0.5)
        assert json.loads(answer.data)["error"]["code"] == "invalid_question"
    except nats.errors.TimeoutError:
        assert not payload.startswith(b"{"), "JSON is always answered"
    await client.close()


async def look(up: Yard, subject: str, expected: int) -> list[dict[str, Any]]:
    """What ``expected`` services answer."""
    client = await nats.connect(
        up.page().nats_url,
        nkeys_seed=str(key_of(up, "default")),
        inbox_prefix="_INBOX_client.default",
    )
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    found = [json.loads((await answers.next_msg(timeout=5)).data) for _ in range(expected)]
    await client.close()
    return sorted(found, key=lambda answer: str(answer["name"]))


async def test_services_are_found_as_nats_micro_services_are(up: Yard) -> None:
    pings, infos = await look(up, "$SRV.PING", 2), await look(up, "$SRV.INFO", 2)
    for ping, info in zip(pings, infos, strict=True):
        assert ping["type"] == "io.nats.micro.v1.ping_response"
        assert info["type"] == "io.nats.micro.v1.info_response"
        assert ping.items() <= {**info, "type": ping["type"]}.items()
        assert re.fullmatch(r"\d+\.\d+\.\d+", ping["version"])
    assert [(p["name"], p["id"]) for p in pings] == [
        ("switchyard", "gateway-0"),
        ("switchyard-registry", "registry-0"),
    ]
    gateway, registry = ({e["subject"]: e["queue_group"] for e in i["endpoints"]} for i in infos)
    assert gateway["yard.ask.chat.complete.*"] == "gateway"
    assert registry == dict.fromkeys(
        (
            "yard.ask.fleet.show",
            "yard.ask.node.show",
            "yard.ask.node.list",
            "yard.ask.engine.show",
            "yard.ask.engine.list",
        ),
        "registry",
    )


@pytest.mark.parametrize(
    ("whom", "name"),
    [
        ("switchyard", "switchyard"),
        ("switchyard.gateway-0", "switchyard"),
        ("switchyard-registry.registry-0", "switchyard-registry"),
    ],
)
async def test_one_service_answers_by_its_name(up: Yard, whom: str, name: str) -> None:
    for verb in ("PING", "INFO", "STATS"):
        (answer,) = await look(up, f"$SRV.{verb}.{whom}", 1)
        assert answer["name"] == name


async def test_what_was_asked_of_a_service_is_counted(up: Yard) -> None:
    async def counted() -> dict[str, dict[str, Any]]:
        (stats,) = await look(up, "$SRV.STATS.switchyard-registry", 1)
        assert stats["type"] == "io.nats.micro.v1.stats_response"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", stats["started"])
        return {e["name"]: e for e in stats["endpoints"]}

    before = (await counted())["node-list"]
    client = await nats.connect(
        up.page().nats_url,
        nkeys_seed=str(key_of(up, "default")),
        inbox_prefix="_INBOX_client.default",
    )
    for question in (b"", b"{}", b'{"limit": 0}'):
        await client.request("yard.ask.node.list", question, timeout=5)
    await client.close()
    after = (await counted())["node-list"]
    assert after["num_requests"] - before["num_requests"] == 3
    assert after["num_errors"] - before["num_errors"] == 1
    assert after["last_error"] == "invalid_question"  # and not what was in it
    assert after["processing_time"] > before["processing_time"]
    assert after["average_processing_time"] == after["processing_time"] // after["num_requests"]
