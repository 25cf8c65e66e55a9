"""Clients on NATS: what they get is what HTTP gives, and the broker keeps tenants apart."""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nats
from nats.aio.client import Client as Plain

from bus.clients import client_inbox
from components.client import Client
from tests.show.fleet import Fleet
from tests.show.proof import Figure, Run, Void

MODEL = "sim/words"
FAST = ("--profile", "constant:ttft_ms=5,itl_ms=2")
REQUESTS = 200
AT_ONCE = 16
#: A stream that was left must have ended within this time.
LEFT_S_MAX = 1.0

OWN, OTHER = "default", "acme"
#: What the client of a tenant tries: verb, subject, whether the broker lets it.
PROBES: tuple[tuple[str, str, bool], ...] = (
    *(
        ("publish", f"yard.ask.{call}.{tenant}", tenant == OWN)
        for call in ("chat.complete", "text.complete", "generation.cancel", "generation.explain")
        for tenant in (OWN, OTHER)
    ),
    ("publish", "yard.ask.fleet.show", True),
    ("publish", "yard.ask.model.show.m", True),
    ("publish", "yard.ask.engine.show_states.nobody", True),
    *(
        ("publish", subject, False)
        for subject in (
            "yard.cmd.request.schedule.scheduler-0",
            "yard.cmd.request.cancel.scheduler-0",
            "yard.cmd.attempt.run.decode-0",
            "yard.cmd.attempt.cancel.decode-0",
            "yard.out.gateway-0.decode-0",
            "yard.sig.heartbeat.sent.worker.decode-0",
            "yard.evt.engine.load_reported.decode-0",
            "yard.ask.engine.control.decode-0",
            "yard.ask.request.explain",
            "yard.ask.body.fetch.gateway-0",
            "$JS.API.STREAM.INFO.REQUESTS",
            "$SYS.REQ.SERVER.PING",
            f"{client_inbox(OTHER)}.x.1",
            "_INBOX_gateway-0.x.1",
        )
    ),
    ("subscription", f"{client_inbox(OWN)}.x.1", True),
    *(
        ("subscription", subject, False)
        for subject in (
            f"{client_inbox(OTHER)}.x.1",
            "_INBOX_client.>",
            "_INBOX_gateway-0.>",
            "yard.ask.chat.complete.default",
            "yard.out.gateway-0.decode-0",
            "yard.evt.body.published.x",
            "yard.>",
            ">",
        )
    ),
)


@dataclass(frozen=True, slots=True)
class _Call:
    """One body, and whether it is streamed."""

    body: dict[str, Any]
    stream: bool


async def nats_client(run: Run) -> Figure:
    """The Python client with a tenant's key, against `switchyard up`."""
    dice = random.Random(7)
    calls = [_call(i, dice) for i in range(40 if run.quick else REQUESTS)]
    async with Fleet(run.folder / "fleet", FAST, run.fault) as fleet:
        page = fleet.page()
        key = Path(page.keys_dir) / f"client-{OWN}.nk"
        async with Client(page.nats_url, key_file=key) as client, fleet.client() as http:
            gate = asyncio.Semaphore(AT_ONCE)
            equal = await asyncio.gather(*(_is_equal(client, http, c, gate) for c in calls))
            left_s = await _leaves(client, http)
        wrong = await _wrongly_judged(page.nats_url, key)
    text = (
        f"{sum(equal)} of {len(calls)} answers as over HTTP, text and usage; "
        f"{len(PROBES) - len(wrong)} of {len(PROBES)} attempts let or denied as they must; "
        f"a stream that was left ended after {left_s * 1000:.0f} ms"
    )
    text += f"; first wrong: {wrong[0]}" if wrong else ""
    return Figure(text, all(equal) and not wrong and left_s <= LEFT_S_MAX)


def _call(number: int, dice: random.Random) -> _Call:
    body: dict[str, Any] = {"model": MODEL, "seed": number, "max_tokens": dice.randint(1, 120)}
    words = " ".join(f"word{dice.randint(0, 99)}" for _ in range(dice.randint(1, 300)))
    if dice.random() < 0.5:
        body["messages"] = [{"role": "user", "content": words}]
    else:
        body["prompt"] = words
    return _Call(body, stream=number % 2 == 0)


async def _is_equal(
    client: Client, http: httpx.AsyncClient, call: _Call, gate: asyncio.Semaphore
) -> bool:
    chat = "messages" in call.body
    async with gate:
        path = "/v1/chat/completions" if chat else "/v1/completions"
        told = (await http.post(path, json=call.body)).json()
        (choice,) = told["choices"]
        expected = choice["message"]["content"] if chat else choice["text"]
        if call.stream:
            stream = (client.chat if chat else client.text)(**call.body)
            said, usage = await stream.text(), stream.usage or {}
        else:
            whole = await client.complete(**call.body)
            (choice,) = whole["choices"]
            said, usage = choice["message"]["content"] if chat else choice["text"], whole["usage"]
    counts = [(u["prompt_tokens"], u["completion_tokens"]) for u in (told["usage"], usage)]
    return said == expected and counts[0] == counts[1]


async def _leaves(client: Client, http: httpx.AsyncClient) -> float:
    """Seconds from the moment when a stream is left until the gateway runs nothing."""

    async def running() -> int:
        return int((await http.get("/health")).json()["running"])

    body = {"model": MODEL, "prompt": "for ever", "max_tokens": 20_000, "ignore_eos": True}
    async for _ in client.text(**body):
        if not await running():
            raise Void("the stream did not run")
        break
    began = time.monotonic()
    while await running():  # noqa: ASYNC110  (what changes is in another process)
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def _wrongly_judged(url: str, key: Path) -> list[str]:
    """The probes that the broker did not judge as it must."""
    refused: set[tuple[str, str]] = set()

    async def on_error(error: Exception) -> None:
        text = str(error).lower()
        if "ermissions violation for " in text:
            kind = text.split("violation for ")[1].split(" ")[0]
            refused.add((kind, text.split('"')[1]))

    plain = await nats.connect(
        url, nkeys_seed=str(key), inbox_prefix=client_inbox(OWN), error_cb=on_error
    )
    for verb, subject, _ in PROBES:
        if verb == "publish":
            await plain.publish(subject, b"\xc1")  # no message: readers count it as malformed
        else:
            await plain.subscribe(subject)
    await _settled(plain)
    await plain.close()
    return [
        f"{verb} {subject} was {'let' if (verb, subject.lower()) not in refused else 'denied'}"
        for verb, subject, allowed in PROBES
        if ((verb, subject.lower()) not in refused) != allowed
    ]


async def _settled(plain: Plain) -> None:
    """The server has read everything, and said what it refused."""
    echo = await plain.subscribe(f"{client_inbox(OWN)}.settled")
    await plain.publish(f"{client_inbox(OWN)}.settled", b"")
    await echo.next_msg(timeout=5)
