"""A job as the body of SGLang's ``POST /generate``. Pure.

Each choice is an element of its own, because each may have emitted something else before; SGLang's
own ``n`` would compute the prompt first in the one room that it has. One element takes the single
form, several the batch form. Only what differs from SGLang's defaults is said: an older server
refuses sampling parameters that it does not know.

A server that has no tokenizer in common with us gets the prompt as ``text``. A gateway without a
tokenizer makes each byte of UTF-8 a token, so the bytes are the ids.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from components.worker.continuing import emitted_of
from components.worker.engine import Job
from schemas.body import SamplingParameters, StructuredOutput

#: Seeds of continuations lie this far apart: the random numbers before the seam are not used again.
SEED_STRIDE: Final = 1_000_003
SEED_MASK: Final = (1 << 31) - 1
#: What a client's or our own headers may be on their way to a server.
ALLOWED_HEADERS: Final = frozenset(("authorization", "x-request-id", "x-correlation-id"))
ALLOWED_PREFIX: Final = "x-request-id-"


class CannotSay(ValueError):
    """SGLang has no words for what this job asks for."""


@dataclass(frozen=True, slots=True)
class Task:
    """What both servers are asked, but for where they meet. ``rids`` has a name per choice."""

    choices: tuple[int, ...]
    rids: tuple[str, ...]
    fields: dict[str, Any]

    @property
    def is_batch(self) -> bool:
        return len(self.choices) > 1

    def body(self, meeting: dict[str, Any]) -> bytes:
        """The same bytes for both servers."""
        rid: Any = list(self.rids) if self.is_batch else self.rids[0]
        return orjson.dumps({**self.fields, **meeting, "rid": rid})


def task_of(
    job: Job,
    choices: Sequence[int],
    rids: Sequence[str],
    *,
    room_tokens: int,
    as_text: bool,
    stream: bool,
) -> Task:
    """``room_tokens`` is what the context leaves for output. Raises ``CannotSay``."""
    given = [_prompt(job, choice, as_text=as_text) for choice in choices]
    sampling = [_sampling(job, choice, room_tokens) for choice in choices]
    batch = len(choices) > 1
    fields: dict[str, Any] = {
        "text" if as_text else "input_ids": given if batch else given[0],
        "sampling_params": sampling if batch else sampling[0],
        "stream": stream,
        **_logprobs(job.sampling),
    }
    if job.page_hashes:  # equal for equal beginnings of one tenant; nobody finds another's pages
        fields["extra_key"] = f"{job.page_hashes[0]:016x}"
    return Task(tuple(choices), tuple(rids), fields)


def prompt_text(prompt: Sequence[int]) -> str:
    """The text whose bytes these ids are. Raises ``CannotSay``."""
    try:
        return bytes(prompt).decode(errors="replace")
    except ValueError as error:
        raise CannotSay("without a tokenizer the ids of a prompt are bytes") from error


def _prompt(job: Job, choice: int, *, as_text: bool) -> str | list[int]:
    emitted = emitted_of(job, choice)
    if not as_text:
        return [*job.prompt, *emitted]
    if emitted:
        raise CannotSay("a text cannot be continued by ids")
    return prompt_text(job.prompt)


def _logprobs(sampling: SamplingParameters) -> dict[str, Any]:
    asked = [n for n in (sampling.logprobs, sampling.prompt_logprobs) if n is not None]
    if not asked:
        return {}
    fields: dict[str, Any] = {"return_logprob": True, "return_text_in_logprobs": True}
    if top := max(asked):
        fields["top_logprobs_num"] = top
    if sampling.prompt_logprobs is not None:
        fields["logprob_start_len"] = 0
    return fields


def _sampling(job: Job, choice: int, room_tokens: int) -> dict[str, Any]:
    sampling, emitted = job.sampling, len(emitted_of(job, choice))
    wanted: dict[str, Any] = {
        "max_new_tokens": min(sampling.max_tokens, room_tokens) - emitted,
        "temperature": sampling.temperature,
    }
    optional: dict[str, tuple[Any, Any]] = {
        "min_new_tokens": (max(0, sampling.min_tokens - emitted), 0),
        "top_p": (sampling.top_p, 1.0),
        "top_k": (sampling.top_k if sampling.top_k > 0 else -1, -1),
        "min_p": (sampling.min_p, 0.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "ignore_eos": (sampling.ignore_eos, False),
        "stop": (list(sampling.stop), []),
        "stop_token_ids": (list(sampling.stop_token_ids), []),
        "logit_bias": ({str(i): bias for i, bias in sampling.logit_bias}, {}),
        "sampling_seed": (_seed(sampling.seed, choice, emitted), None),
    }
    wanted.update({name: value for name, (value, usual) in optional.items() if value != usual})
    if sampling.structured is not None:
        wanted.update(_grammar(sampling.structured))
    return wanted


def _seed(seed: int | None, choice: int, emitted: int) -> int | None:
    """Each choice has its own; a continuation goes on with other random numbers."""
    return None if seed is None else (seed + choice + SEED_STRIDE * emitted) & SEED_MASK


def _grammar(structured: StructuredOutput) -> dict[str, str]:
    kind, value = structured.kind, structured.value
    if kind == "json_object":
        return {"json_schema": '{"type": "object"}'}
    if kind == "choice":
        return {"regex": "|".join(f"({re.escape(text)})" for text in _texts(value))}
    names = {
        "json": "json_schema",
        "regex": "regex",
        "grammar": "ebnf",
        "structural_tag": "structural_tag",
    }
    return {names[kind]: value}


def _texts(value: str) -> list[str]:
    try:
        texts = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise CannotSay("a choice is a JSON list of texts") from error
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise CannotSay("a choice is a JSON list of texts")
    return texts


def allowed_headers(headers: dict[str, str]) -> dict[str, str]:
    """What of these may reach a server: who asks, and which request it is. Names in lower case."""
    lower = {name.lower(): value for name, value in headers.items()}
    return {
        name: value
        for name, value in lower.items()
        if (name in ALLOWED_HEADERS or name.startswith(ALLOWED_PREFIX)) and value.isprintable()
    }
