"""Chats that the servers render themselves: ``POST /v1/chat/completions``. Pure.

Used where the agent has no tokenizer: the server then knows the model's template, and we do not.
Such a stream has no ids, so nobody can continue it elsewhere. Several choices are ``n``, with a
room for each in the three lists.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from components.worker.engine import Job
from components.worker.sglang.requests import CannotSay, Task
from components.worker.sglang.responses import BadAnswer

PATH: Final = "/v1/chat/completions"


def chat_task(
    job: Job, choices: Sequence[int], rids: Sequence[str], *, model: str, stream: bool
) -> Task:
    """The job's chat as OpenAI's request. Raises ``CannotSay``."""
    sampling = job.sampling
    if job.emitted or sampling.logprobs is not None or sampling.prompt_logprobs is not None:
        raise CannotSay("a chat without ids is neither continued nor measured")
    optional: dict[str, tuple[Any, Any]] = {
        "top_p": (sampling.top_p, 1.0),
        "top_k": (sampling.top_k if sampling.top_k > 0 else -1, -1),
        "min_p": (sampling.min_p, 0.0),
        "min_tokens": (sampling.min_tokens, 0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "ignore_eos": (sampling.ignore_eos, False),
        "stop": (list(sampling.stop), []),
        "stop_token_ids": (list(sampling.stop_token_ids), []),
        "seed": (sampling.seed, None),
        "n": (len(choices), 1),
    }
    fields = {
        "model": model,
        "messages": _messages(sampling.chat),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stream": stream,
        **{name: value for name, (value, usual) in optional.items() if value != usual},
    }
    if sampling.structured is not None:
        raise CannotSay("a grammar goes with ids")
    return Task(tuple(choices), tuple(rids), fields)


def _messages(chat: str) -> list[Any]:
    try:
        messages = orjson.loads(chat)
    except orjson.JSONDecodeError as error:
        raise CannotSay("a chat is a JSON list of messages") from error
    if not isinstance(messages, list):
        raise CannotSay("a chat is a JSON list of messages")
    return messages


def as_generated(chunk: Mapping[str, Any]) -> dict[str, Any]:
    """A chunk of a chat as one of ``/generate``, without ids. Raises ``BadAnswer``."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or len(choices) > 1:
        raise BadAnswer("a chunk of a chat has one choice, or none beside its usage")
    if not choices:
        return {"text": "", "meta_info": {"finish_reason": None, "completion_tokens": 0}}
    choice = choices[0]
    delta = choice.get("delta") or choice.get("message") or {}
    text, reason = delta.get("content") or "", choice.get("finish_reason")
    finish = None if reason is None else {"type": reason, "matched": choice.get("matched_stop")}
    usage = chunk.get("usage") or {}
    meta: dict[str, Any] = {"finish_reason": finish, "prompt_tokens": usage.get("prompt_tokens")}
    if not text:
        meta["completion_tokens"] = 0  # a role, or the end
    return {"index": choice.get("index", 0), "text": text, "meta_info": meta}
