"""A job as requests to the server: each open choice is one. Pure.

A choice goes on behind what it has emitted: those ids are the end of its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from components.domain.pages import pages_for
from components.worker.continuing import (
    Finish,
    emitted_of,
    end_of,
    is_stop_id,
    prompt_to_hand_over,
    salt_of,
    seed_of,
)
from components.worker.engine import Job
from schemas.body import SamplingParameters

if TYPE_CHECKING:
    from asyncio import Task


class Text(Protocol):
    """From ids, or from what the server wrote, to text. ``text.py`` has both."""

    def take(self, token_id: int, *, is_stop: bool = False) -> str | None:
        """One more id; the stop text that it completed, if any."""

    def write(self, text: str, tokens: int) -> str | None:
        """The server's text of so many ids; the stop text that it completed, if any."""

    def read(self, *, finished: bool = False) -> str:
        """What became certain since the last call."""
        ...


@dataclass(eq=False, slots=True)
class Choice:
    """One request. ``index`` is that of its next id, over all attempts.

    ``tokens_max`` and ``tokens_min`` count what is still to come; ``emitted`` is the end of
    ``prompt``.
    """

    number: int
    prompt: Sequence[int]
    sampling: SamplingParameters
    text: Text
    index: int
    tokens_max: int
    tokens_min: int
    seed: int | None
    emitted: Sequence[int]
    salt: str | None
    started: bool = False
    #: When its last ids came, for the time between two.
    last_s: float | None = None
    finish: Finish | None = None
    cached_tokens: int = 0

    @property
    def pages(self) -> int:
        """Pages that it holds at the server as far as we know."""
        return pages_for(len(self.prompt) + self.index - len(self.emitted))


@dataclass(eq=False, slots=True)
class Running:
    """A job at the server. ``siblings`` wait until the first choice has its KV."""

    job: Job
    choices: dict[int, Choice] = field(default_factory=dict)
    siblings: list[Choice] = field(default_factory=list)
    held_pages: int = 0
    #: Its KV has not arrived yet: no step moves it on.
    parked: bool = False
    #: ``Prefilled`` was said.
    offered: bool = False
    #: Read what the server says of it.
    followers: set["Task[None]"] = field(default_factory=set)


def begin(
    job: Job, number: int, text: Text, room: int, end_ids: Sequence[int]
) -> tuple[Choice, Finish | None]:
    """A choice as it stands after what it has emitted, and its end if those ids have reached it.

    ``room`` is what the context leaves for output; the first of ``end_ids`` is the tokenizer's own.
    """
    sampling, ids = job.sampling, emitted_of(job, number)
    stop = None
    for place, token_id in enumerate(ids):
        is_stop = is_stop_id(sampling, token_id, place + 1, end_ids)
        stop = text.take(token_id, is_stop=is_stop) or stop
    text.read()  # it was said
    tokens_max = min(sampling.max_tokens, room)
    choice = Choice(
        number,
        [*job.prompt, *ids],
        sampling,
        text,
        index=len(ids),
        tokens_max=tokens_max - len(ids),
        tokens_min=max(0, sampling.min_tokens - len(ids)),
        seed=seed_of(sampling.seed, number, len(ids)),
        emitted=ids,
        salt=salt_of(job),
    )
    if stop is not None:
        return choice, ("stop", stop)
    return choice, end_of(sampling, ids, tokens_max, end_ids)


def prefill(job: Job, text: Text) -> Choice:
    """The choice that computes what is handed over; the one token that it costs nobody sees."""
    prompt = prompt_to_hand_over(job)
    return Choice(0, prompt, job.sampling, text, 0, 1, 0, None, (), salt_of(job))
