"""The two calls that produce tokens, as raw ASGI: per request anything, per token only bytes.

The head of a streamed answer is held back until its first token, so that whatever goes wrong before
gets a real status, and a worker that dies before it is never seen by the client.
"""

import asyncio
import functools
import random
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from bus import tracing
from components.gateway.abilities import fitted
from components.gateway.desk import Desk
from components.gateway.errors import ApiError, Headers, internal
from components.gateway.exchange import ClientGone, Exchange
from components.gateway.intake import Intake, Receive
from components.gateway.openai_requests import PARSERS, Api, Call
from components.gateway.openai_responses import STREAM_HEADERS, Echo, Head, dialect
from components.gateway.protocol import CONNECTION
from components.gateway.rendering import Model
from components.gateway.submit import Origin, new_name, new_requests, response_id
from components.gateway.writers import AsgiWriter, Connection, DirectWriter, Send, StreamWriter

Scope = MutableMapping[str, Any]

_SAFE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
#: Ids of zeros alone mean that there is none (W3C Trace Context, 3.2.2).
_NO_TRACE: Final = re.compile("-(0{32}|0{16})-")


@dataclass(frozen=True, slots=True)
class Caller:
    """What the head of a request says about who asks. ``request_id`` is theirs, if it is safe."""

    request_id: bytes | None
    trace: str | None

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> "Caller":
        found = dict(scope["headers"])
        request_id = found.get(b"x-request-id", b"")
        trace = found.get(b"traceparent", b"").decode("latin-1")
        return cls(
            request_id if _SAFE_ID.fullmatch(request_id) else None,
            trace if tracing.trace_id(trace) and not _NO_TRACE.search(trace) else None,
        )


class Answer:
    """One HTTP answer on its way out."""

    def __init__(self, scope: Scope, send: Send, request_id: bytes) -> None:
        self.send = send
        self.started = False
        self._scope = scope
        self._request_id = (b"x-request-id", request_id)

    async def begin(self, status: int, headers: Headers) -> None:
        self.started = True
        headers = [*headers, self._request_id]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def error(self, error: ApiError) -> None:
        headers = error.headers
        if error.status in {408, 413}:
            headers.append((b"connection", b"close"))  # the rest of the body was not read
        await self.whole(error.status, headers, error.body)

    def writer(self, now_s: Callable[[], float], on_drained: Callable[[], None]) -> StreamWriter:
        """The shortest way to the client that the server offers."""
        connection: Connection | None = self._scope.get("extensions", {}).get(CONNECTION)
        if connection is None:
            return AsgiWriter(self.send, now_s, on_drained)
        return DirectWriter(connection, self.send, now_s, on_drained)


class CompletionRoute:
    """``POST /v1/chat/completions`` or ``POST /v1/completions``."""

    def __init__(self, api: Api, desk: Desk, intake: Intake) -> None:
        self._api = api
        self._desk = desk
        self._intake = intake
        self._path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[api]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_s = self._desk.host.clock.now_s()
        caller, name = Caller.of(scope), new_name()
        answer = Answer(scope, send, caller.request_id or f"req-{name}".encode())
        counters = self._desk.host.counters
        counters.add("http_requests_total")
        try:
            await self._serve(caller, name, arrived_s, receive, answer)
        except ClientGone:
            counters.add("http_clients_gone_total")
        except ApiError as error:
            counters.add("http_refused_total")
            await answer.error(error)
        except Exception as error:
            counters.add("http_errors_total")
            self._desk.host.log.exception("a request failed: %s", type(error).__name__)
            if answer.started:
                raise  # the server closes the connection: a cut answer is seen to be cut
            await answer.error(internal())

    async def _serve(
        self, caller: Caller, name: str, arrived_s: float, receive: Receive, answer: Answer
    ) -> None:
        desk = self._desk
        desk.check_open(1)
        sampled = random.random() < desk.host.settings.telemetry_sample_ratio
        trace = caller.trace or tracing.new_trace(sampled=sampled)
        with tracing.root_span(f"POST {self._path}", trace) as trace_here:
            budget_ms = round(desk.settings.deadline_s * 1000)
            origin = Origin(desk.host.instance, desk.salt, trace_here, arrived_s, budget_ms)
            exchange, streamed = await self._open(receive, name, origin)
            watch = asyncio.ensure_future(self._watch(receive, exchange))
            try:
                await (self._stream if streamed else self._whole)(exchange, answer)
            finally:
                watch.cancel()
                desk.close(exchange, "client_gone" if exchange.gone else "answer_failed")

    async def _open(self, receive: Receive, name: str, origin: Origin) -> tuple[Exchange, bool]:
        """From bytes to running requests. What is only needed for that is gone when it returns."""
        desk = self._desk
        call = PARSERS[self._api](await self._intake.read(receive))
        if call.ignored:
            desk.host.counters.add("ignored_fields_total", call.ignored)
        model = desk.models.get(call.model)
        call = fitted(call, model)
        prompts = await self._prompts(call, model)
        requests = new_requests(call, model.card, name, prompts, origin)
        exchange = self._exchange(call, model, name, prompts)
        desk.open(exchange, requests)
        return exchange, call.stream

    async def _prompts(self, call: Call, model: Model) -> list[list[int]]:
        """Token ids of each prompt; what is long is tokenised in a thread."""
        if call.text_chars <= self._desk.settings.render_inline_chars:
            return _token_ids(call, model)
        return await self._desk.pool.run(functools.partial(_token_ids, call, model))

    def _exchange(self, call: Call, model: Model, name: str, prompts: list[list[int]]) -> Exchange:
        sampling, choices = call.sampling, call.sampling.n
        # Logprobs would tell what is not to be shown.
        hides = sampling.parsing is not None and not call.include_reasoning
        head = Head(
            response_id=response_id(self._api, name),
            created_s=self._desk.host.clock.wall_ms() // 1000,
            model=call.model,
            include_usage=call.include_usage,
            logprobs=sampling.logprobs is not None and not hides,
            echoes=_echoes(call, model, prompts) if call.echo else None,
            prompt_logprobs=call.prompt_logprobs,
            prompt_only=call.prompt_only,
            parsed=sampling.parsing is not None,
            reasoning=not hides,
        )
        return Exchange(
            dialect(self._api, head),
            choices,
            include_usage=call.include_usage,
            undelivered_max=self._desk.settings.undelivered_tokens_max,
            names=call.names if call.needs else None,
        )

    async def _watch(self, receive: Receive, exchange: Exchange) -> None:
        """Cancel in the turn in which the client leaves (or the answer is complete)."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._desk.abandon(exchange)

    async def _whole(self, exchange: Exchange, answer: Answer) -> None:
        body = await exchange.whole()
        await answer.whole(200, [(b"content-type", b"application/json")], body)

    async def _stream(self, exchange: Exchange, answer: Answer) -> None:
        await exchange.began()
        await answer.begin(200, [*STREAM_HEADERS])
        writer = answer.writer(self._desk.host.clock.now_s, exchange.drained)
        exchange.attach(writer)
        await writer.run()


def _echoes(call: Call, model: Model, prompts: list[list[int]]) -> dict[int, Echo]:
    """By choice; the choices of a prompt share one."""
    echoes: dict[int, Echo] = {}
    for prompt, ids in zip(call.prompts, prompts, strict=True):
        text = prompt if isinstance(prompt, str) else model.text_of(ids)
        echo = Echo(text, model.text_of(ids[:1], special_tokens=True))
        echoes |= dict.fromkeys(range(len(echoes), len(echoes) + call.sampling.n), echo)
    return echoes


def _token_ids(call: Call, model: Model) -> list[list[int]]:
    if call.api == "chat":
        return [model.chat_ids(call.messages, call.tools.listed if call.tools else None)]
    return [_prompt_ids(prompt, model) for prompt in call.prompts]


def _prompt_ids(prompt: str | list[int], model: Model) -> list[int]:
    if isinstance(prompt, str):
        return model.text_ids(prompt)
    model.check_ids(prompt)
    return prompt
