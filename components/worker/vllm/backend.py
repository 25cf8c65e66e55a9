"""What the agent needs of vLLM, in words of its own. ``async_llm.py`` is the real one.

Everything that knows vLLM stands behind this protocol, so that the engine beside it can be run,
typed and tested where no vLLM is installed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from components.worker.engine import Job
from components.worker.vllm.page_names import PagesChange
from schemas.body import SamplingParameters
from schemas.engine import StepTimeFit
from schemas.fleet import ModelCard

#: ``[[id, logprob, text] of the chosen token, then of the likeliest ones]``
LogprobsOfToken = list[list[int | float | str]]
#: A connector's per-request data: JSON values.
KvParams = Mapping[str, Any]
#: What a parser made of some ids; its layout: ``schemas.frames``.
Delta = dict[str, Any]


class EngineDied(Exception):
    """vLLM's engine process is gone; nothing that was submitted will be answered."""


class BadSequence(ValueError):
    """vLLM refuses these parameters or this prompt."""


class BadParameter(BadSequence):
    """No vLLM can honour one parameter, whatever the prompt; ``param`` is OpenAI's name of it."""

    def __init__(self, param: str, detail: str = "") -> None:
        super().__init__(f"{param}: {detail}")
        self.param = param


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output must look like: ``kind`` and ``value`` as in ``StructuredOutput``.

    ``param`` is what asked for it. ``reasoning_ended``: it holds from the first id on; false: only
    after the reasoning; None: vLLM has no parser for reasoning.
    """

    kind: str
    value: str
    param: str
    reasoning_ended: bool | None = None


@dataclass(frozen=True, slots=True)
class SequenceTask:
    """One choice as vLLM gets it. ``prompt`` includes what the choice has emitted before.

    ``max_tokens`` and ``min_tokens`` count what is still to come. ``seed`` is this choice's own.
    """

    name: str
    prompt: Sequence[int]
    sampling: SamplingParameters
    max_tokens: int
    min_tokens: int
    seed: int | None = None
    #: Ids at the end of ``prompt`` that count as output for penalties.
    emitted: Sequence[int] = ()
    #: It has held for ``emitted`` too.
    constraint: Constraint | None = None
    #: Blocks are shared only between sequences of one salt.
    cache_salt: str | None = None
    kv: KvParams | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What one engine step (or a few, when nobody looked) gave a sequence.

    ``finish`` is vLLM's reason, set with the last output; ``kv`` is what a connector returned.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[LogprobsOfToken] | None
    finish: str | None
    stop_token_id: int | None
    cached_tokens: int
    kv: KvParams | None = None
    #: One row per prompt token, None for the first; with a sequence's first output only.
    prompt_logprobs: Sequence[LogprobsOfToken | None] | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """vLLM's scheduler after a step; the last three are sums since the start."""

    steps: int = 0
    running: int = 0
    #: Share of the blocks that are held, 0 to 1.
    kv_usage: float = 0.0
    step_ms: float = 0.0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    #: Tokens whose KV a connector brought.
    external_hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is fixed once vLLM runs. ``blocks`` of ``block_tokens`` tokens are for sequences."""

    card: ModelCard
    vocabulary_size: int
    context_tokens_max: int
    seqs_max: int
    step_tokens_max: int
    blocks: int
    block_tokens: int
    kv_bytes_per_token: int
    has_connector: bool


class Text(Protocol):
    """From the ids of one choice to its text, as vLLM's own detokeniser and stop search do it."""

    def take(self, token_id: int, *, is_stop: bool = False) -> str | None:
        """One more id; the stop text that it completed, if any. A stop id adds no text."""

    def read(self, *, finished: bool = False) -> str:
        """What became certain since the last call; everything when ``finished``."""
        ...


class Parser(Protocol):
    """Tells tool calls and reasoning from the content of one choice, id by id.

    What it says is a function of the ids alone, so a continuation that has read what was emitted
    says only what comes after.
    """

    @property
    def has_called(self) -> bool:
        """Has it seen a call that ends the choice with ``tool_calls``?"""
        ...

    def take(self, token_ids: Sequence[int], text: str, *, finished: bool) -> list[Delta]:
        """The next ids with the text that became certain with them. Never raises."""
        ...


class Reading(Protocol):
    """How the output of one job is read; made once per job, its parts once per choice."""

    @property
    def constraint(self) -> Constraint | None:
        """What its output must look like."""
        ...

    def text(self) -> Text:
        """The text of a new choice."""
        ...

    def parser(self, choice: int) -> Parser | None:
        """None where all output is content."""
        ...


class Backend(Protocol):
    """One vLLM engine, loaded and warm."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        ...

    async def attach(self) -> None:
        """Begin to listen to vLLM, in the caller's event loop."""

    def stop(self) -> None:
        """End vLLM's processes: seconds. Called in a thread. Harmless twice."""

    @property
    def is_dead(self) -> bool:
        """Has vLLM's process ended by itself?"""
        ...

    @property
    def step_fit(self) -> StepTimeFit | None:
        """What a step costs, as far as it is known."""
        ...

    @property
    def stats(self) -> Stats:
        """As of the last engine step. An engine that does nothing makes no steps."""
        ...

    def reading(self, job: Job) -> Reading:
        """How the output of this job is to be read. Raises ``BadParameter``."""
        ...

    async def admit(self, sequence: SequenceTask) -> None:
        """Returns when vLLM may have a sequence with a constraint. Raises ``BadSequence``."""

    def generate(self, sequence: SequenceTask) -> AsyncIterator[Output]:
        """Run a sequence to its end. Raises ``BadSequence`` or ``EngineDied``."""
        ...

    async def abort(self, names: Sequence[str]) -> None:
        """End these sequences; their last output says ``abort``. Unknown names change nothing."""

    def page_changes(self) -> AsyncIterator[PagesChange]:
        """What enters and leaves the prefix cache; ends at once where nobody asked for it."""
        ...

    # Control

    async def pause(self, *, keep: bool) -> None:
        """Make no more steps. What runs is frozen (``keep``) or aborted."""

    async def resume(self) -> None:
        """Go on after ``pause``."""

    async def sleep(self, level: int) -> None:
        """Give memory back: 1 keeps the weights on the host, 2 drops them."""

    async def wake(self) -> None:
        """Undo ``sleep``."""

    async def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; False when some are in use."""
        ...
