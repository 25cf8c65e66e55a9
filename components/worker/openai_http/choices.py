"""A job as requests to the server: each open choice is one. Pure.

A choice goes on behind what it has emitted: those ids are the end of its prompt.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from components.domain.pages import pages_for
from components.worker.engine import Job
from schemas.body import SamplingParameters

#: Seeds of continuations lie this far apart: the random numbers before the seam are not used again.
SEED_STRIDE: Final = 1_000_003
SEED_MASK: Final = (1 << 63) - 1

#: (reason, stop reason), as in ``schemas.frames``.
Finish = tuple[str, str | int | None]


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


def begin(
    job: Job, number: int, text: Text, room: int, end_ids: Sequence[int]
) -> tuple[Choice, Finish | None]:
    """A choice as it stands after what it has emitted, and its end if those ids have reached it.

    ``room`` is what the context leaves for output; the first of ``end_ids`` is the tokenizer's own.
    """
    sampling, emitted = job.sampling, job.emitted.get(number)
    ids = list(emitted.token_ids) if emitted else []
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
        seed=_seed(sampling.seed, number, len(ids)),
        emitted=ids,
        salt=salt_of(job),
    )
    if stop is not None:
        return choice, ("stop", stop)
    if ids and is_stop_id(sampling, ids[-1], len(ids), end_ids):
        goes_without_saying = ids[-1] == end_ids[0] if end_ids else False
        return choice, ("stop", None if goes_without_saying else ids[-1])
    return choice, ("length", None) if len(ids) >= tokens_max else None


def prefill(job: Job, text: Text) -> Choice:
    """The choice that computes what is handed over; the one token that it costs nobody sees."""
    emitted = job.emitted.get(0) if job.sampling.n == 1 else None
    prompt = [*job.prompt, *(emitted.token_ids if emitted else ())]
    return Choice(0, prompt, job.sampling, text, 0, 1, 0, None, (), salt_of(job))


def is_stop_id(
    sampling: SamplingParameters, token_id: int, tokens: int, end_ids: Collection[int]
) -> bool:
    """Whether this id ends a choice when it comes as the last of so many."""
    if tokens <= sampling.min_tokens:
        return False
    ends = not sampling.ignore_eos and token_id in end_ids
    return ends or token_id in sampling.stop_token_ids


def salt_of(job: Job) -> str | None:
    """The name of the prompt's first page: the server's cache is shared as far as hashes say."""
    return f"{job.page_hashes[0]:016x}" if job.page_hashes else None


def _seed(seed: int | None, number: int, index: int) -> int | None:
    """Each choice has its own, as in vLLM; a continuation goes on with other random numbers."""
    return None if seed is None else (seed + number + SEED_STRIDE * index) & SEED_MASK
