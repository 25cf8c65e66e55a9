"""Requests whose every token is known beforehand, and whether they came out so."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx

from components.domain.story import Story
from components.domain.words import vocabulary
from schemas.body import SamplingParameters
from tests.support.lines import lines_of


@dataclass(slots=True)
class Told:
    """One streamed request: what had to come, what came."""

    prompt: list[int]
    max_tokens: int
    expected: str
    text: str = ""
    status: int = 0
    request_id: str = ""
    first_s: float | None = None
    done_s: float | None = None
    last_index: int = -1
    index_errors: int = 0
    finish: str | None = None
    error: str = ""
    usage: dict[str, object] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """All tokens, once each, in order, and the right end."""
        return (
            not self.error
            and self.status == 200
            and self.text == self.expected
            and self.index_errors == 0
            and self.last_index == self.max_tokens - 1
            and self.finish == "length"
            and self.usage.get("completion_tokens") == self.max_tokens
        )

    @property
    def runs(self) -> bool:
        """Has its first token, not its last."""
        return self.first_s is not None and self.done_s is None

    @property
    def waits(self) -> bool:
        """Was sent and has no token yet."""
        return self.first_s is None and self.done_s is None


def told(seed: int, prompt_tokens: int, max_tokens: int) -> Told:
    """A random prompt of words, and the story that a simulated model must tell after it."""
    rng = random.Random(seed)
    words = vocabulary().words
    prompt = [rng.choice(words) for _ in range(prompt_tokens)]
    story = Story(
        prompt, (), SamplingParameters(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    )
    expected = "".join(story.next().text for _ in range(max_tokens))
    return Told(prompt, max_tokens, expected)


async def tell(client: httpx.AsyncClient, model: str, one: Told) -> None:
    """Stream one request; whatever happens is noted, nothing is raised."""
    body = {
        "model": model,
        "prompt": one.prompt,
        "max_tokens": one.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            one.status = response.status_code
            one.request_id = response.headers.get("x-request-id", "")
            if response.status_code != 200:
                one.error = (await response.aread()).decode()[:300]
                return
            async for line in lines_of(response):
                _take(one, line)
    except httpx.HTTPError as error:
        one.error = f"{type(error).__name__}: {error}"
    finally:
        one.done_s = time.monotonic()


def _take(one: Told, line: str) -> None:
    if line.startswith("id:"):
        index = int(line.rsplit(":", maxsplit=1)[-1])
        one.index_errors += index <= one.last_index
        one.last_index = index
    if not line.startswith("data: {"):
        return
    event = json.loads(line[6:])
    if "error" in event:
        one.error = str(event["error"])[:300]
        return
    one.usage = event.get("usage") or one.usage
    for choice in event.get("choices", ()):
        one.text += choice.get("text") or ""
        one.finish = choice.get("finish_reason") or one.finish
        if one.first_s is None and choice.get("text"):
            one.first_s = time.monotonic()


async def tell_all(client: httpx.AsyncClient, model: str, stories: list[Told]) -> None:
    """All at once; returns when the last has ended."""
    await asyncio.gather(*(tell(client, model, one) for one in stories))


def summary(stories: list[Told]) -> str:
    """For a figure: how many are exact, and what is wrong with the first that is not."""
    wrong = [s for s in stories if not s.exact]
    text = f"{len(stories) - len(wrong)}/{len(stories)} exact"
    if not wrong:
        return text
    first = wrong[0]
    why = first.error or f"HTTP {first.status}, {first.last_index + 1}/{first.max_tokens} tokens"
    if not first.error and first.text != first.expected:
        why += f", text differs (finish {first.finish}, {first.index_errors} index errors)"
    return f"{text}; first wrong: {why}"
