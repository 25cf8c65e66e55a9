"""`switchyard test`: one short chat through a running yard, with how long it took."""

import argparse
import http.client
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from components.cli import found
from components.cli.errors import CommandFailed

TOKENS: Final = 50
QUESTION: Final = "Which track is free?"
LINE_BYTES_MAX: Final = 1024 * 1024
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
KEY_VARIABLE: Final = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Answer:
    """Times from the moment the request was sent; ``text`` is what was answered."""

    model: str
    text: str
    first_ms: float
    total_ms: float
    finish_reason: str


class Failed(Exception):
    """The test did not succeed: the message says at what."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", help="http://HOST:PORT; default: that of the `up` that runs")
    add("--model", help="default: the first that the address lists")
    add("--timeout", type=float, default=60.0, metavar="S", help="default: %(default)g")
    add("--json", action="store_true", help="the result as JSON")
    parser.epilog = f"A key in {KEY_VARIABLE} is sent along, as OpenAI's clients do."
    found.add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    url = args.url or found.page(args.data).url
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise CommandFailed(f"{url} is not of the form http://HOST:PORT", 2)
    try:
        answer = ask(parts, args.model, args.timeout)
    except Failed as failed:
        if args.json:
            print(json.dumps({"ok": False, "url": url, "error": str(failed)}))
            return 1
        raise CommandFailed(f"failed: {failed}") from failed
    if args.json:
        print(json.dumps({"ok": True, "url": url, **asdict(answer)}))
    else:
        times = f"first token after {answer.first_ms:.0f} ms, all after {answer.total_ms:.0f} ms"
        print(f"ok: {answer.model} answered; {times}\n  {answer.text.strip()[:200]!r}")
    return 0


def ask(url: SplitResult, model: str | None, timeout_s: float) -> Answer:
    """One streamed chat; raises ``Failed``."""
    deadline_s = time.monotonic() + timeout_s
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    assert url.hostname is not None
    try:
        connection = kind(url.hostname, url.port, timeout=timeout_s)
        try:
            model = model or _first_model(connection, url.path)
            return _chat(connection, url.path, model, deadline_s)
        finally:
            connection.close()
    except TimeoutError as error:
        raise Failed(
            f"no answer within {timeout_s:g} s; `switchyard status` shows who is there,"
            " `switchyard doctor` looks for what is wrong"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(
            f"{url.geturl()} does not answer ({str(error) or type(error).__name__});"
            " start a yard with `switchyard up`, or say where with --url"
        ) from error


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE)
    return {
        "content-type": "application/json",
        **({"authorization": f"Bearer {key}"} if key else {}),
    }


def _first_model(connection: http.client.HTTPConnection, path: str) -> str:
    connection.request("GET", f"{path.rstrip('/')}/v1/models", headers=_headers())
    answer = connection.getresponse()
    body = answer.read(ANSWER_BYTES_MAX)
    if answer.status != http.HTTPStatus.OK:
        raise Failed(_refusal(answer.status, body))
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise Failed("it lists no model: is an engine ready? See `switchyard status`") from None


def _chat(
    connection: http.client.HTTPConnection, path: str, model: str, deadline_s: float
) -> Answer:
    message = {"role": "user", "content": QUESTION}
    body = {"model": model, "stream": True, "max_tokens": TOKENS, "messages": [message]}
    began_s = time.monotonic()
    connection.request(
        "POST", f"{path.rstrip('/')}/v1/chat/completions", json.dumps(body), _headers()
    )
    answer = connection.getresponse()
    if answer.status != http.HTTPStatus.OK:
        raise Failed(_refusal(answer.status, answer.read(ANSWER_BYTES_MAX)))
    text, finish, first_s = "", "", None
    for choice in _choices(answer, deadline_s):
        delta = choice.get("delta", {})
        piece = delta.get("content") or delta.get("reasoning_content") or ""
        if piece and first_s is None:
            first_s = time.monotonic()
        text += piece
        finish = choice.get("finish_reason") or finish
    ended_s = time.monotonic()
    if first_s is None or not finish:
        raise Failed("the answer broke off" if text else "the answer was empty")
    return Answer(model, text, (first_s - began_s) * 1e3, (ended_s - began_s) * 1e3, finish)


def _choices(answer: http.client.HTTPResponse, deadline_s: float) -> Iterator[dict[str, Any]]:
    """The first choice of each event, until [DONE]; raises ``Failed``."""
    total = 0
    while line := answer.readline(LINE_BYTES_MAX):
        total += len(line)
        if total > ANSWER_BYTES_MAX:
            raise Failed(f"{TOKENS} tokens came to more than {ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > deadline_s:
            raise TimeoutError
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            return
        event = json.loads(line[6:])
        if "error" in event:
            raise Failed(f"error in the stream: {event['error']}")
        yield from event.get("choices", [])[:1]
    raise Failed("the stream ended without [DONE]")


def _refusal(status: int, body: bytes) -> str:
    try:
        said = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = body[:200].decode(errors="replace")
    hint = f"; put a key into {KEY_VARIABLE}" if status in {401, 403} else ""
    return f"HTTP {status}: {said}{hint}"
