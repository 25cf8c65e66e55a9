"""From a checked call and its token ids to the requests that the fleet runs, one per prompt."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bus.clients import DEFAULT_TENANT
from components.domain.bodies import Body, encode_body
from components.domain.pages import pack_hashes, page_hashes
from components.gateway.errors import context_exceeded, invalid
from components.gateway.openai_requests import Api, Call
from components.gateway.request import NewRequest
from schemas.fleet import ModelCard
from schemas.request import RequestCard

_PREFIX: Final[dict[Api, str]] = {"chat": "chatcmpl-", "completions": "cmpl-"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests come from: gateway, tenant's salt, trace, arrival, time they have, tenant."""

    gateway: str
    salt: int
    trace: str | None
    arrived_s: float
    budget_ms: int
    tenant: str = DEFAULT_TENANT


def new_name() -> str:
    """What a request and its answer are known by: 24 hex digits, not to be guessed."""
    return secrets.token_hex(12)


def response_id(api: Api, name: str) -> str:
    return _PREFIX[api] + name


def request_ids(name: str, prompts: int) -> list[str]:
    """``req-<name>``, with a number behind it when there are several prompts."""
    if prompts == 1:
        return [f"req-{name}"]
    return [f"req-{name}-{place}" for place in range(prompts)]


def new_requests(
    call: Call, card: ModelCard, name: str, prompts: Sequence[Sequence[int]], origin: Origin
) -> list[NewRequest]:
    """Raises ``ApiError`` when a prompt, or what it may become, exceeds the model's context."""
    ids = request_ids(name, len(prompts))
    return [
        _new_request(call, card, request_id, prompt, origin)
        for request_id, prompt in zip(ids, prompts, strict=True)
    ]


def _new_request(
    call: Call, model: ModelCard, request_id: str, prompt: Sequence[int], origin: Origin
) -> NewRequest:
    max_tokens = _max_tokens(call, model, len(prompt))
    sampling = call.sampling.model_copy(update={"max_tokens": max_tokens})
    body = encode_body(Body(prompt, sampling))
    card = RequestCard(
        request_id=request_id,
        attempt=1,
        gateway=origin.gateway,
        model=call.model,
        tenant=origin.tenant,
        budget_ms=origin.budget_ms,
        prompt_tokens=len(prompt),
        output_tokens_max=max_tokens,
        choices=sampling.n,
        body_bytes=len(body),
        page_hashes=pack_hashes(page_hashes(prompt, origin.salt)),
        traceparent=origin.trace,
        whole=sampling.prompt_logprobs is not None,
        output_tokens_given=call.max_tokens is not None,
    )
    ends = frozenset(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        ends |= frozenset(model.eos_token_ids)
    return NewRequest(card, body, origin.arrived_s, ends, sampling.min_tokens)


def _max_tokens(call: Call, model: ModelCard, prompt_tokens: int) -> int:
    """As many as were asked for, or as fit."""
    param = "messages" if call.api == "chat" else "prompt"
    if prompt_tokens == 0:
        raise invalid(param, "The prompt is empty")
    room = model.context_tokens_max - prompt_tokens
    wanted = 1 if call.max_tokens is None else call.max_tokens
    if call.sampling.chat and call.max_tokens is not None:
        return call.max_tokens  # our length is only a bound, the engine knows what fits
    if wanted > room:
        has = f"the prompt has {prompt_tokens} and at least {wanted} more were asked for"
        raise context_exceeded(param, model.context_tokens_max, has)
    max_tokens = room if call.max_tokens is None else call.max_tokens
    if call.sampling.min_tokens > max_tokens:
        raise invalid("min_tokens", f"'min_tokens' is larger than the {max_tokens} that fit")
    return max_tokens
