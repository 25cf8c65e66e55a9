"""What an attempt takes over from the ids emitted before it. Pure, one for all engines."""

from collections.abc import Collection, Sequence
from typing import Final

from components.worker.engine import Job
from schemas.body import SamplingParameters

#: Seeds of continuations lie this far apart: the random numbers before the seam are not used again.
SEED_STRIDE: Final = 1_000_003
SEED_MASK: Final = (1 << 63) - 1

#: (reason, stop reason), as in ``schemas.frames``.
Finish = tuple[str, str | int | None]


def emitted_of(job: Job, number: int) -> list[int]:
    """The ids of one choice so far, over all attempts."""
    emitted = job.emitted.get(number)
    return list(emitted.token_ids) if emitted else []


def prompt_to_hand_over(job: Job) -> list[int]:
    """What a prefill computes: of a single choice also what it has emitted."""
    return [*job.prompt, *(emitted_of(job, 0) if job.sampling.n == 1 else ())]


def is_stop_id(
    sampling: SamplingParameters, token_id: int, tokens: int, end_ids: Collection[int]
) -> bool:
    """Whether this id ends a choice when it comes as the last of so many."""
    if tokens <= sampling.min_tokens:
        return False
    ends = not sampling.ignore_eos and token_id in end_ids
    return ends or token_id in sampling.stop_token_ids


def end_of(
    sampling: SamplingParameters, ids: Sequence[int], tokens_max: int, end_ids: Sequence[int]
) -> Finish | None:
    """How a choice with these ids has ended already, if it has.

    The first of ``end_ids`` is the tokenizer's own, which goes without saying.
    """
    if ids and is_stop_id(sampling, ids[-1], len(ids), end_ids):
        said = None if list(end_ids[:1]) == [ids[-1]] else ids[-1]
        return "stop", said
    return ("length", None) if len(ids) >= tokens_max else None


def seed_of(seed: int | None, number: int, index: int) -> int | None:
    """Each choice has its own, as in vLLM; a continuation goes on with other random numbers."""
    return None if seed is None else (seed + number + SEED_STRIDE * index) & SEED_MASK


def salt_of(job: Job) -> str | None:
    """The name of the prompt's first page: equal for equal beginnings of one tenant.

    So an engine's cache is shared as far as page hashes say, and no tenant finds another's blocks.
    A prompt without a full page has nothing to share.
    """
    return f"{job.page_hashes[0]:016x}" if job.page_hashes else None
