"""SGLang servers that prefill and decode apart, as far as a load balancer can tell. Real HTTP.

They are stricter than SGLang: every field of a request has to be known, of its type and in its
range; both halves have to carry the same meeting place, which must be the prefill server's own;
no room is ever used twice. What is wrong is answered with 400 and kept in ``Hub.violations``.

Decode says nothing before prefill has come into the same room, and gives up after a while; so does
prefill. Tokens are a function of all ids before them, so a continuation can be checked.
"""

import asyncio
import contextlib
import json
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from components.worker.sglang.rooms import ROOM_MAX
from tests.support.http_server import HttpServer

DEFAULT_PORT = 8998
VOCABULARY = 900
KNOWN = {
    "input_ids", "text", "sampling_params", "stream", "rid", "return_logprob", "logprob_start_len",
    "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs", "extra_key",
    "bootstrap_host", "bootstrap_port", "bootstrap_room",
}  # fmt: skip
SAMPLING = {
    "max_new_tokens": int, "min_new_tokens": int, "temperature": float, "top_p": float,
    "top_k": int, "min_p": float, "presence_penalty": float, "frequency_penalty": float,
    "repetition_penalty": float, "ignore_eos": bool, "stop": list, "stop_token_ids": list,
    "logit_bias": dict, "sampling_seed": int, "json_schema": str, "regex": str, "ebnf": str,
    "structural_tag": str,
}  # fmt: skip
CHAT = {
    "model", "messages", "stream", "max_tokens", "temperature", "top_p", "top_k", "min_p",
    "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos",
    "stop", "stop_token_ids", "seed", "n", "rid", "bootstrap_host", "bootstrap_port",
    "bootstrap_room",
}  # fmt: skip


def next_id(ids):
    """The token after these ids."""
    return 100 + zlib.crc32(repr(list(ids)).encode()) % VOCABULARY


def piece(token_id):
    """What a token adds to the text; some take several bytes of UTF-8."""
    return f" {'é' if token_id % 3 else '世'}{token_id}"


def told(prompt, tokens):
    """(ids, text) that the servers must give for this prompt."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(next_id(ids))
    new = ids[len(prompt) :]
    return new, "".join(map(piece, new))


def logprob(token_id):
    return -(token_id % 97) / 10 - 0.1


class Refused(Exception):
    pass


@dataclass
class Hub:
    """What the servers of one test share: the rooms, and what agents did wrong."""

    wait_s: float = 1.0
    prefills: dict[tuple[str, int], "SglangServer"] = field(default_factory=dict)
    waiting: dict[tuple[str, int], asyncio.Event] = field(default_factory=dict)
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)
    meetings: dict[int, dict[str, Any]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def refuse(self, text):
        self.violations.append(text)
        raise Refused(text)

    def event(self, side, room):
        return self.waiting.setdefault((side, room), asyncio.Event())

    async def meet(self, side, room):
        """Come into a room and wait for the other half; raises TimeoutError."""
        other = "decode" if side == "prefill" else "prefill"
        self.event(side, room).set()
        async with asyncio.timeout(self.wait_s):
            await self.event(other, room).wait()


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests."""

    kind: str
    times: int = 1
    after: int = 0
    status: int = 500


class SglangServer(HttpServer):
    """One server. ``style``: all, new_ids, new, no_ids (see ``responses.py``)."""

    def __init__(self, hub, side, *, bootstrap_port=None, ip="127.0.0.1", style="all", **more):
        super().__init__(ip)
        self.hub, self.side, self.style = hub, side, style
        self.bootstrap_port = bootstrap_port
        self.itl_s, self.delay_s = more.get("itl_s", 0.0), 0.0
        self.info_extra = more.get("info", {})
        self.faults, self.requests, self.headers = [], [], []
        self.aborted: list[str] = []
        self.paths: Counter[str] = Counter()
        self.running = 0
        self.healthy, self.switch_answers = True, []
        self.api_key = more.get("api_key")
        self._ended: dict[str, asyncio.Event] = {}

    async def start(self, port=0):
        await super().start(port)
        if self.side == "prefill":
            self.hub.prefills[self.host, self.bootstrap_port or DEFAULT_PORT] = self
        return self

    # HTTP

    async def _answer(self, method, path, headers, body, answer):
        path, _, query = path.partition("?")
        self.paths[path] += 1
        if self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            await answer.whole(401, {"error": "Unauthorized"})
            return True
        if (method, path) in {("POST", "/generate"), ("POST", "/v1/chat/completions")}:
            self.headers.append(headers)
            return await self._generate(path, body, answer)
        status, value = self._small(method, path, query, body)
        await answer.whole(status, value)
        return True

    def _small(self, method, path, query, body):
        match method, path:
            case "GET", "/health" | "/health_generate":
                return (200 if self.healthy else 503), b""
            case "GET", "/get_server_info":
                return 200, self.info()
            case "POST", "/flush_cache":
                return (200 if "timeout=" in query else 400), b"Cache flushed."
            case "POST", "/abort_request":
                rid = json.loads(body)["rid"]
                assert rid, "an empty rid aborts everything"
                self.aborted.append(rid)
                for known, ended in self._ended.items():
                    if known.startswith(rid):
                        ended.set()
                return 200, b""
            case "POST", "/pd_role_switch":
                return self.switch_answers.pop(0)
        return 404, {"detail": "Not Found"}

    def info(self):
        states = [{"last_gen_throughput": 12.5, "memory_usage": {"token_capacity": 16_000}}]
        return {
            "context_length": 2048,
            "max_running_requests": 32,
            "incremental_streaming_output": self.style == "new",
            "internal_states": states,
            "version": "0.5.10",
            **self.info_extra,
        }

    # A generation

    async def _generate(self, path, body, answer):
        request = json.loads(body)
        self.requests.append(request)
        fault = self.faults[0] if self.faults else Fault("none", times=1 << 30)
        fault.times -= 1
        if fault.times <= 0:
            self.faults.pop(0)
        if fault.kind == "status":
            await answer.whole(fault.status, {"error": {"message": f"planted {fault.status}"}})
            return True
        if fault.kind == "reset_before":
            answer.writer.transport.abort()
            return False
        if fault.kind == "slow":
            await asyncio.sleep(60)
        try:
            elements = self._elements(path, request)
        except Refused as refused:
            await answer.whole(400, {"error": {"message": str(refused)}})
            return True
        self.running += len(elements)
        try:
            return await self._say(path, request, elements, answer, fault)
        finally:
            self.running -= len(elements)

    async def _say(self, path, request, elements, answer, fault):  # noqa: C901, PLR0912  (faults)
        stream = request["stream"]
        if stream:
            await answer.head()
        if fault.kind == "reset_after":
            answer.writer.transport.abort()
            return False
        if fault.kind == "hang":
            await asyncio.sleep(60)
        if fault.kind == "error_event":
            await answer.event({"error": {"message": "The input is longer than the context"}})
            await answer.end()
            return True
        chunks: asyncio.Queue[Any] = asyncio.Queue()
        whole = [None] * len(elements)
        makers = [
            asyncio.ensure_future(self._make(index, e, chunks)) for index, e in enumerate(elements)
        ]
        left, count = len(elements), 0
        try:
            while left:
                index, chunk = await chunks.get()
                left -= chunk["meta_info"]["finish_reason"] is not None
                whole[index] = chunk
                if not stream:
                    continue
                if fault.kind == "cut" and count == fault.after:
                    answer.writer.transport.abort()
                    return False
                if fault.kind == "bad_json" and count == fault.after:
                    await answer.event(b'{"text": oops')
                elif fault.kind == "wrong_shape" and count == fault.after:
                    await answer.event({"text": "no meta", "output_ids": "none"})
                else:
                    await answer.event(self._out(path, index, chunk, batch=len(elements) > 1))
                count += 1
        finally:
            for maker in makers:
                maker.cancel()
            await asyncio.gather(*makers, return_exceptions=True)
        if stream:
            await answer.end(done=fault.kind != "no_done")
        else:
            await answer.whole(200, self._whole(path, whole, fault))
        return True

    def _whole(self, path, whole, fault):
        if fault.kind == "bad_json":
            return b'{"text": oops'
        return whole if len(whole) > 1 else whole[0]

    def _out(self, path, index, chunk, *, batch):
        if path == "/generate":
            return {"index": index, **chunk} if batch else chunk
        finish = chunk["meta_info"]["finish_reason"]
        choice = {
            "index": index,
            "delta": {"content": chunk["text"]},
            "finish_reason": finish and finish["type"],
            "matched_stop": finish and finish.get("matched"),
        }
        return {"object": "chat.completion.chunk", "choices": [choice]}

    async def _make(self, index, element, chunks):
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        ended = self._ended[element.rid] = asyncio.Event()
        try:
            await self.hub.meet(self.side, element.room)
        except TimeoutError:
            chunks.put_nowait((index, self._aborted(element, "KV transfer timed out")))
            return
        await (self._prefill if self.side == "prefill" else self._decode)(
            index, element, chunks, ended
        )

    async def _prefill(self, index, element, chunks, ended):
        element.make()
        chunk = element.chunk("all", {"type": "length", "length": 1}, with_prompt=True)
        chunks.put_nowait((index, chunk))

    async def _decode(self, index, element, chunks, ended):
        while True:
            finish = element.make()
            style = "new" if element.is_chat else self.style
            chunks.put_nowait((index, element.chunk(style, finish)))
            if finish is not None:
                return
            await asyncio.sleep(self.itl_s)
            if ended.is_set():
                chunks.put_nowait((index, self._aborted(element, "Aborted")))
                return

    def _aborted(self, element, message):
        chunk = element.chunk("all", {"type": "abort", "message": message, "status_code": None})
        chunk["meta_info"]["finish_reason"]["status_code"] = 500
        return chunk

    # Is the request right?

    def _elements(self, path, request):
        refuse, is_chat = self.hub.refuse, path != "/generate"
        unknown = set(request) - (CHAT if is_chat else KNOWN)
        if unknown:
            refuse(f"unknown fields {sorted(unknown)}")
        if type(request.get("stream")) is not bool:
            refuse("stream is no flag")
        prompts, batch = self._prompts(request, is_chat)
        places = self._places(request, len(prompts), batch)
        self._same_for_both(request, places)
        rids = self._listed(request, "rid", len(prompts), batch, str)
        if len(set(rids)) < len(rids):
            refuse("a rid twice")
        if is_chat:
            sampling = [{"max_new_tokens": request["max_tokens"]}] * len(prompts)
        else:
            sampling = self._listed(request, "sampling_params", len(prompts), batch, dict)
            for params in sampling:
                self._check_sampling(params)
        return [
            Element(prompt, params, room, rid, request, is_chat)
            for prompt, params, (_, _, room), rid in zip(
                prompts, sampling, places, rids, strict=True
            )
        ]

    def _prompts(self, request, is_chat):
        refuse = self.hub.refuse
        if is_chat:
            n = request.get("n", 1)
            text = "".join(m["content"] for m in request["messages"])
            return [list(text.encode())] * n, n > 1
        if ("input_ids" in request) == ("text" in request):
            refuse("input_ids or text, and not both")
        if "text" in request:
            text = request["text"]
            texts, batch = (text, True) if isinstance(text, list) else ([text], False)
            if not all(isinstance(t, str) for t in texts):
                refuse("text of another type")
            return [list(t.encode()) for t in texts], batch
        ids = request["input_ids"]
        batch = bool(ids) and isinstance(ids[0], list)
        prompts = ids if batch else [ids]
        if not all(p and all(type(i) is int and i >= 0 for i in p) for p in prompts):
            refuse("input_ids are lists of ids")
        return prompts, batch

    def _listed(self, request, name, count, batch, kind):
        value = request.get(name)
        values = value if batch else [value]
        if not isinstance(values, list) or len(values) != count:
            self.hub.refuse(f"{name} is no list of {count}")
        if not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
            self.hub.refuse(f"{name} of another type")
        return values

    def _places(self, request, count, batch):
        refuse = self.hub.refuse
        hosts = self._listed(request, "bootstrap_host", count, batch, str)
        rooms = self._listed(request, "bootstrap_room", count, batch, int)
        if "bootstrap_port" not in request:
            refuse("bootstrap_port is missing")
        ports = self._listed(request, "bootstrap_port", count, batch, int | None)
        for room in rooms:
            if not 0 <= room <= ROOM_MAX:
                refuse(f"room {room} is out of range")
            self.hub.seen[self.side, room] += 1
            if self.hub.seen[self.side, room] > 1:
                refuse("a room twice")
        return list(zip(hosts, ports, rooms, strict=True))

    def _same_for_both(self, request, places):
        """The prefill server's own address, in both halves, which are the same otherwise too."""
        for host, port, room in places:
            if self.side == "prefill":
                if (host, port) != (self.host, self.bootstrap_port):
                    self.hub.refuse(f"{host}:{port} is not this prefill server")
            elif (host, port or DEFAULT_PORT) not in self.hub.prefills:
                self.hub.refuse(f"no prefill server at {host}:{port}")
            other = self.hub.meetings.setdefault(room, request)
            if other != request:
                self.hub.refuse("the two halves differ")

    def _check_sampling(self, params):
        refuse = self.hub.refuse
        for name, value in params.items():
            kind = SAMPLING.get(name)
            if kind is None:
                refuse(f"unknown sampling parameter {name}")
            number = kind is float and type(value) in {int, float}
            if not number and type(value) is not kind:
                refuse(f"{name} is no {kind}")
        if params.get("max_new_tokens", 128) < 1:
            refuse("max_new_tokens below 1")


class Element:
    """One choice on one server."""

    def __init__(self, prompt, params, room, rid, request, is_chat):
        self.prompt, self.params, self.room, self.rid = prompt, params, room, rid
        self.request, self.is_chat = request, is_chat
        self.new, self.said = [], 0
        self.text = ""
        self.said_text = ""

    def make(self):
        """One more token; the finish reason that it brings."""
        token_id = next_id([*self.prompt, *self.new])
        self.new.append(token_id)
        self.text += piece(token_id)
        if token_id in self.params.get("stop_token_ids", ()):
            return {"type": "stop", "matched": token_id}
        for stop in self.params.get("stop", ()):
            if stop in self.text:
                self.text = self.text[: self.text.index(stop)]
                return {"type": "stop", "matched": stop}
        limit = self.params["max_new_tokens"]
        return {"type": "length", "length": limit} if len(self.new) >= limit else None

    def chunk(self, style, finish, *, with_prompt=False):
        meta = {
            "id": self.rid,
            "finish_reason": finish,
            "prompt_tokens": len(self.prompt),
            "completion_tokens": len(self.new),
            "cached_tokens": 3,
        }
        fresh = self.new[self.said :]
        self.said = len(self.new)
        old_text, self.said_text = self.said_text, self.text
        if self.request.get("return_logprob"):
            ids = fresh if style == "new" else self.new
            meta |= self._logprobs(ids, with_prompt)
        chunk: dict[str, Any] = {
            "text": self.text[len(old_text) :] if style == "new" else self.text
        }
        if style != "no_ids":
            chunk["output_ids"] = fresh if style in {"new", "new_ids"} else list(self.new)
        return {**chunk, "meta_info": meta}

    def _logprobs(self, ids, with_prompt):
        top = self.request.get("top_logprobs_num", 0)

        def tops(i):
            return [[logprob(i + k), i + k, piece(i + k)] for k in range(top)] if top else None

        start = self.request.get("logprob_start_len", -1)
        prompt = self.prompt[start:] if with_prompt and start >= 0 else []
        of_prompt = [[logprob(i) if at else None, i, piece(i)] for at, i in enumerate(prompt)]
        return {
            "input_token_logprobs": of_prompt,
            "input_top_logprobs": [tops(i) if at else None for at, i in enumerate(prompt)],
            "input_token_ids_logprobs": [],
            "output_token_logprobs": [[logprob(i), i, piece(i)] for i in ids],
            "output_top_logprobs": [tops(i) for i in ids],
        }


@contextlib.asynccontextmanager
async def servers(hub, *made):
    """Started, and stopped at the end."""
    for server in made:
        await server.start()
    try:
        yield made
    finally:
        for server in made:
            await server.stop()
