"""The official client, both kinds, every shape of call, through real HTTP."""

import asyncio
from typing import Any

import openai
import pytest

from schemas.body import SamplingParameters
from tests.integration.gateway.fleet import MODEL, WORD_IDS, Yard, running_gateway, story_of

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]


def sampling(**changes):
    return SamplingParameters(**{"max_tokens": 24, "ignore_eos": True, "seed": 7, **changes})


@pytest.fixture
async def yard():
    async with running_gateway() as yard:
        yield yard


EXTRA = {"ignore_eos": True}
COMMON: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "seed": 7, "extra_body": EXTRA}


async def test_models_are_listed_and_shown(yard: Yard):
    client = yard.client()
    assert [m.id async for m in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "switchyard"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("other/model")
    assert caught.value.code == "model_not_found"


async def test_a_chat_answers_with_the_whole_text_and_its_usage(yard: Yard):
    answer = await yard.client().chat.completions.create(messages=HELLO, **COMMON)
    [choice] = answer.choices
    assert choice.message.content == story_of(HELLO, sampling())
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (24, 12)
    assert answer.usage.total_tokens == 36
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.id.startswith("chatcmpl-")


async def test_a_streamed_chat_gives_the_same_text_role_first_and_usage_last(yard: Yard):
    stream = await yard.client().chat.completions.create(
        messages=HELLO, stream=True, stream_options={"include_usage": True}, **COMMON
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == story_of(HELLO, sampling())
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert len({c.id for c in chunks}) == 1


async def test_without_being_asked_a_stream_gives_no_usage(yard: Yard):
    stream = await yard.client().chat.completions.create(messages=HELLO, stream=True, **COMMON)
    assert all(c.usage is None and c.choices for c in [chunk async for chunk in stream])


async def test_completions_streamed_and_not_agree(yard: Yard):
    client = yard.client()
    whole = await client.completions.create(prompt="once", **COMMON)
    stream = await client.completions.create(prompt="once", stream=True, **COMMON)
    text = "".join([c.choices[0].text async for c in stream])
    assert whole.choices[0].text == text == story_of("once", sampling())
    assert whole.usage.completion_tokens == 24


async def test_the_beta_stream_helper_of_the_client_works(yard: Yard):
    call = {"model": MODEL, "messages": HELLO, "seed": 7}
    async with yard.client().chat.completions.stream(**call) as stream:
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    story = story_of(HELLO, sampling(max_tokens=30_000, ignore_eos=False))
    assert final.choices[0].message.content == story
    assert events[-1] == "content.done"


async def test_the_synchronous_client_does_all_four(yard: Yard):
    def talk() -> list[str]:
        client: Any = openai.OpenAI(
            base_url=yard.url + "/v1",
            api_key="none",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )
        chat = client.chat.completions.create(messages=HELLO, **COMMON)
        chunks = client.chat.completions.create(messages=HELLO, stream=True, **COMMON)
        text = client.completions.create(prompt="once", **COMMON)
        pieces = client.completions.create(prompt="once", stream=True, **COMMON)
        answers = [
            chat.choices[0].message.content,
            "".join(c.choices[0].delta.content or "" for c in chunks),
            text.choices[0].text,
            "".join(c.choices[0].text for c in pieces),
        ]
        client.close()
        return answers

    chat, chunks, text, pieces = await asyncio.to_thread(talk)
    assert chat == chunks == story_of(HELLO, sampling())
    assert text == pieces == story_of("once", sampling())


async def test_several_choices_come_apart_again(yard: Yard):
    client = yard.client()
    want = [story_of(HELLO, sampling(n=3), choice) for choice in range(3)]
    assert len(set(want)) == 3
    whole = await client.chat.completions.create(messages=HELLO, n=3, **COMMON)
    assert [c.message.content for c in whole.choices] == want
    assert whole.usage.completion_tokens == 72
    got = ["", "", ""]
    async for chunk in await client.chat.completions.create(
        messages=HELLO, n=3, stream=True, **COMMON
    ):
        got[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert got == want


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_several_requests_and_one_answer(yard: Yard, stream):
    prompts = ["once", "twice"]
    answer = await yard.client().completions.create(prompt=prompts, n=2, stream=stream, **COMMON)
    want = [story_of(p, sampling(n=2), c) for p in prompts for c in range(2)]
    if stream:
        got = [""] * 4
        async for chunk in answer:
            got[chunk.choices[0].index] += chunk.choices[0].text
    else:
        got = [c.text for c in answer.choices]
        assert answer.usage.completion_tokens == 96
    assert got == want
    assert len(yard.fleet.scheduled) == 2


@pytest.mark.parametrize("prompt", [WORD_IDS, [WORD_IDS]])
async def test_a_prompt_may_be_token_ids(yard: Yard, prompt):
    answer = await yard.client().completions.create(prompt=prompt, **COMMON)
    assert answer.choices[0].text == story_of(None, sampling(), ids=WORD_IDS)
    assert answer.usage.prompt_tokens == len(WORD_IDS)


async def test_stop_texts_end_the_text_before_them(yard: Yard):
    whole = story_of(HELLO, sampling(max_tokens=200))
    stop = whole.split()[9]
    common = COMMON | {"max_tokens": 200}
    answer = await yard.client().chat.completions.create(messages=HELLO, stop=stop, **common)
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_a_chat(yard: Yard, stream):
    answer = await yard.client().chat.completions.create(
        messages=HELLO, logprobs=True, top_logprobs=2, stream=stream, **COMMON
    )
    if stream:
        chunks = [c async for c in answer]
        tokens = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    else:
        tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 24
    assert "".join(t.token for t in tokens) == story_of(HELLO, sampling())
    assert all(len(t.top_logprobs) == 2 and t.logprob < 0 for t in tokens)
    assert all(bytes(t.bytes).decode() == t.token for t in tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_a_completion(yard: Yard, stream):
    answer = await yard.client().completions.create(
        prompt="once", logprobs=1, stream=stream, **COMMON
    )
    if stream:
        parts = [c.choices[0].logprobs async for c in answer if c.choices[0].logprobs]
    else:
        parts = [answer.choices[0].logprobs]
    tokens = [t for p in parts for t in p.tokens]
    offsets = [o for p in parts for o in p.text_offset]
    assert "".join(tokens) == story_of("once", sampling())
    assert offsets == [len("".join(tokens[:i])) for i in range(24)]
    assert all(len(top) == 1 for p in parts for top in p.top_logprobs)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["once upon a time", WORD_IDS])
async def test_echo_puts_the_prompt_in_front(yard: Yard, stream, prompt):
    answer = await yard.client().completions.create(
        prompt=prompt, echo=True, stream=stream, **COMMON
    )
    pieces = [c.choices[0].text async for c in answer] if stream else [answer.choices[0].text]
    text = "".join(pieces)
    ids = prompt if isinstance(prompt, list) else None
    story = story_of(prompt, sampling(), ids=ids)
    assert text.endswith(story)
    assert len(text) > len(story)
    if isinstance(prompt, str):
        assert text == prompt + story


async def test_a_body_too_large_to_ride_along_is_fetched(yard: Yard):
    prompt = WORD_IDS * 150
    answer = await yard.client().completions.create(prompt=prompt, **COMMON)
    assert yard.fleet.scheduled[0].body is None
    assert answer.choices[0].text == story_of(None, sampling(), ids=prompt)


async def test_without_a_limit_a_chat_may_fill_the_context(yard: Yard):
    answer = await yard.client().chat.completions.create(model=MODEL, messages=HELLO, seed=7)
    [scheduled] = yard.fleet.scheduled
    assert scheduled.card.output_tokens_max == 32_768 - scheduled.card.prompt_tokens
    assert answer.choices[0].finish_reason == "stop"


async def test_twenty_clients_at_once_all_get_their_own_text(yard: Yard):
    yard.fleet.itl_s = 0.002
    client = yard.client()

    async def talk(n: int) -> bool:
        messages = [{"role": "user", "content": f"tell me about {n}"}]
        stream = await client.chat.completions.create(messages=messages, stream=True, **COMMON)
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
        return text == story_of(messages, sampling())

    assert all(await asyncio.gather(*(talk(n) for n in range(20))))
