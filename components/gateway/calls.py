"""From the bytes of a call to its running requests, whichever way it came."""

import functools

from components.gateway.abilities import fitted
from components.gateway.desk import Desk
from components.gateway.exchange import Exchange
from components.gateway.openai_requests import PARSERS, Api, Call
from components.gateway.openai_responses import Echo, Head, dialect
from components.gateway.rendering import Model
from components.gateway.submit import Origin, new_requests, response_id


async def open_call(
    desk: Desk, api: Api, body: bytes, name: str, origin: Origin
) -> tuple[Exchange, bool]:
    """The answer in the making, and whether it is to be streamed; raises ``ApiError``.

    What is only needed for that is gone when it returns.
    """
    call = PARSERS[api](body)
    if call.ignored:
        desk.host.counters.add("ignored_fields_total", call.ignored)
    model = desk.models.get(call.model)
    call = fitted(call, model)
    prompts = await _prompts(desk, call, model)
    requests = new_requests(call, model.card, name, prompts, origin)
    exchange = _exchange(desk, call, model, name, prompts)
    desk.open(exchange, requests)
    return exchange, call.stream


async def _prompts(desk: Desk, call: Call, model: Model) -> list[list[int]]:
    """Token ids of each prompt; what is long is tokenised in a thread."""
    if call.text_chars <= desk.settings.render_inline_chars:
        return _token_ids(call, model)
    return await desk.pool.run(functools.partial(_token_ids, call, model))


def _exchange(
    desk: Desk, call: Call, model: Model, name: str, prompts: list[list[int]]
) -> Exchange:
    sampling, choices = call.sampling, call.sampling.n
    # Logprobs would tell what is not to be shown.
    hides = sampling.parsing is not None and not call.include_reasoning
    head = Head(
        response_id=response_id(call.api, name),
        created_s=desk.host.clock.wall_ms() // 1000,
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
        dialect(call.api, head),
        choices,
        include_usage=call.include_usage,
        undelivered_max=desk.settings.undelivered_tokens_max,
        names=call.names if call.needs else None,
    )


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
