"""What the engine model says has happened, each with its exact time.

`StepEnded` is the token event. A run of decode steps in which nothing else changes is one event
with `steps` > 1 when the caller let more than one of them pass between two calls; a caller that
comes at every `next_step_at` sees `steps` == 1 always. Either way each of `request_ids` got
exactly one token in each of these steps.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request left the queue; `hit_tokens` of its prompt were found in the prefix cache."""

    request_id: str
    at_s: float
    hit_tokens: int


@dataclass(frozen=True, slots=True)
class StepEnded:
    """Steps `step - steps + 1` to `step` ended, the last one at `at_s`.

    `request_ids` got one token in each of them; it is empty after a step that only prefilled.
    """

    at_s: float
    step: int
    steps: int
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of the request came with the step that ended at `at_s`."""

    request_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class PrefillFinished:
    """A request of kind `prefill` has its KV; its pages stay until `release`."""

    request_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The request has all its tokens and holds nothing any more."""

    request_id: str
    at_s: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Preempted:
    """The request lost its pages to an older one and waits, first in line, to be computed again."""

    request_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class PagesStored:
    """Pages entered the prefix cache, in order of the prompt; `parent` precedes them (0: none)."""

    at_s: float
    hashes: tuple[int, ...]
    parent: int


@dataclass(frozen=True, slots=True)
class PagesRemoved:
    """Pages left the prefix cache: to make room, or because somebody wanted it emptied."""

    at_s: float
    hashes: tuple[int, ...]


ModelEvent = (
    Admitted
    | StepEnded
    | FirstToken
    | PrefillFinished
    | Finished
    | Preempted
    | PagesStored
    | PagesRemoved
)
