"""An OpenAI-compatible server, as a vLLM server (token ids) or as any other (texts). Real HTTP.

Tokens are a function of all ids before them (``sglang_server.next_id``), so a continuation can be
checked. A request with a field that it does not know is a 400, kept in ``violations``. ``faults``
are taken one by one, each by the next request for tokens.
"""

import asyncio
import json
from dataclasses import dataclass

from tests.support.http_server import HttpServer
from tests.support.sglang_server import logprob, next_id, piece

KNOWN = {
    "model", "stream", "stream_options", "prompt", "messages", "max_tokens", "temperature", "top_p",
    "presence_penalty", "frequency_penalty", "seed", "logit_bias", "logprobs", "top_logprobs",
    "stop", "response_format", "tools", "tool_choice", "parallel_tool_calls",
}  # fmt: skip
KNOWN_BY_VLLM = {
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "return_token_ids",
    "stop_token_ids", "prompt_logprobs", "cache_salt", "return_tokens_as_token_ids",
    "structured_outputs", "kv_transfer_params",
}  # fmt: skip


@dataclass
class Fault:
    """``kind``: status, cut, reset, garbage, hang, error_event, no_ids or finish; ``after`` ids."""

    kind: str
    after: int = 0
    status: int = 500
    error: object = None


class OpenAIServer(HttpServer):
    """``vllm`` False: it neither takes nor gives ids, and has no metrics."""

    def __init__(self, *, vllm=True, model="m", itl_s=0.0, api_key=""):
        super().__init__()
        self.vllm, self.model, self.itl_s, self.api_key = vllm, model, itl_s, api_key
        self.requests, self.headers, self.violations, self.controls = [], [], [], []
        self.faults: list[Fault] = []
        self.running, self.generated = 0, 0
        self.healthy = True
        self.hold = asyncio.Event()
        self.hold.set()
        self.kv_params = {"remote_engine_id": "e1", "remote_block_ids": [1, 2]}

    async def _answer(self, method, path, headers, body, answer):
        if self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            await answer.whole(401, {"error": {"message": "who are you?"}})
            return True
        match method, path.partition("?")[0]:
            case "GET", "/v1/models":
                card = {"id": self.model, "max_model_len": 1000 if self.vllm else None}
                await answer.whole(200, {"object": "list", "data": [card]})
            case "GET", "/health":
                await answer.whole(200 if self.healthy else 503, b"")
            case "GET", "/metrics" if self.vllm:
                await answer.whole(200, self._metrics())
            case "POST", "/v1/completions" | "/v1/chat/completions":
                self.headers.append(headers)
                return await self._serve_tokens(path, json.loads(body), answer)
            case "POST", "/pause" | "/resume" | "/sleep" | "/wake_up" | "/reset_prefix_cache":
                self.controls.append(path)
                await answer.whole(200, b"")
            case _:
                await answer.whole(404, {"detail": "Not Found"})
        return True

    def _metrics(self):
        lines = {
            "vllm:num_requests_running": self.running,
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0.25,
            "vllm:generation_tokens_total": self.generated,
            'vllm:cache_config_info{block_size="16",num_gpu_blocks="640"}': 1.0,
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items()).encode()

    async def _serve_tokens(self, path, request, answer):
        self.requests.append(request)
        unknown = set(request) - KNOWN - (KNOWN_BY_VLLM if self.vllm else set())
        if unknown:
            self.violations.append(unknown)
            error = {"message": f"unknown {sorted(unknown)}", "param": min(unknown)}
            await answer.whole(400, {"error": error})
            return True
        fault = self.faults.pop(0) if self.faults else Fault("none")
        if fault.kind == "status":
            await answer.whole(fault.status, fault.error or {"error": {"message": "no"}})
            return True
        if fault.kind == "reset":
            return False
        self.running += 1
        try:
            return await Answering(self, path, request, answer, fault).run()
        finally:
            self.running -= 1


class Answering:
    """One request."""

    def __init__(self, server, path, request, answer, fault):
        self.server, self.request, self.answer, self.fault = server, request, answer, fault
        self.is_chat = path.endswith("/chat/completions")
        prompt = request["messages"] if self.is_chat else request["prompt"]
        self.ids = list(prompt) if isinstance(prompt, list) and not self.is_chat else [7]
        self.prompt_tokens = len(self.ids)
        self.text = ""

    async def run(self):
        if not self.request["stream"]:
            await self.server.hold.wait()
            await self.answer.whole(200, self._whole())
            return True
        await self.answer.head()
        for number in range(self.request["max_tokens"]):
            await self.server.hold.wait()
            if self.fault.kind in {"cut", "hang", "garbage", "error_event"} and (
                number == self.fault.after
            ):
                return await self._spoil()
            if self.server.itl_s:
                await asyncio.sleep(self.server.itl_s)
            finish = self._make(number)
            await self.answer.event(self._event(self._choice([self.ids[-1]], finish)))
            if finish:
                break
        await self.answer.event({"id": "x", "choices": [], "usage": self._usage()})
        await self.answer.end()
        return True

    async def _spoil(self):
        if self.fault.kind == "hang":
            await asyncio.sleep(30)
        if self.fault.kind == "garbage":
            await self.answer.event(b"{no json")
        if self.fault.kind == "error_event":
            await self.answer.event({"error": {"message": "EngineCore died", "code": 500}})
        return False

    def _make(self, number):
        """One more token; why it is the last."""
        token_id = next_id(self.ids)
        self.ids.append(token_id)
        self.server.generated += 1
        if self.fault.kind == "finish" and number == self.fault.after:
            return str(self.fault.error)
        if token_id in self.request.get("stop_token_ids", ()):
            return "stop"
        return "length" if number + 1 == self.request["max_tokens"] else None

    def _choice(self, new, finish):
        text = "".join(map(piece, new))
        choice = {"index": 0, "finish_reason": finish, "stop_reason": None}
        if finish == "stop":
            choice["stop_reason"] = new[-1]
        choice |= {"delta": {"content": text}} if self.is_chat else {"text": text}
        if (
            self.server.vllm
            and self.request.get("return_token_ids")
            and self.fault.kind != "no_ids"
        ):
            choice["token_ids"] = new
        if self.request.get("logprobs") is not None and not self.is_chat:
            names = [f"token_id:{i}" for i in new]
            values = [logprob(i) for i in new]
            tops = [{n: v, "token_id:5": v - 1} for n, v in zip(names, values, strict=True)]
            choice["logprobs"] = {"tokens": names, "token_logprobs": values, "top_logprobs": tops}
        return choice

    def _event(self, choice):
        return {"id": "x", "model": self.server.model, "choices": [choice]}

    def _whole(self):
        new = []
        finish = None
        for number in range(self.request["max_tokens"]):
            finish = self._make(number)
            new.append(self.ids[-1])
            if finish:
                break
        answer = {**self._event(self._choice(new, finish)), "usage": self._usage()}
        if "kv_transfer_params" in self.request:
            answer["kv_transfer_params"] = self.server.kv_params
        if self.request.get("prompt_logprobs") is not None:
            prompt = self.ids[: self.prompt_tokens]
            rows = [
                {str(i): {"logprob": logprob(i), "rank": 1, "decoded_token": piece(i)}}
                for i in prompt
            ]
            answer["choices"][0]["prompt_logprobs"] = [None, *rows[1:]]
        return answer

    def _usage(self):
        cached = {"cached_tokens": 3}
        return {"prompt_tokens": self.prompt_tokens, "prompt_tokens_details": cached}
