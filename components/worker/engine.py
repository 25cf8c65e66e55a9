"""What an agent asks of its engine, and what an engine promises.

An engine runs *jobs*: one attempt of one request, with all its choices. Three kinds of job follow
from the phase:

    aggregated   compute the prompt and decode; tokens come out
    prefill      compute the prompt, keep its KV, report `Prefilled`; no token comes out
    decode       the prompt's KV comes from elsewhere; once it is here, decode

Between two engines the KV moves in one of two ways. Either the prefill engine pushes: `send_kv`
begins it, `Moved` ends it, and the decode engine learns by `kv_arrived` that it may begin. Or the
decode engine pulls by itself with the params of the offer, `KvArrived` is its own news, and
`send_kv` has nothing to do but report `Moved` when the other side has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from components.domain.bodies import Emitted
from schemas.body import SamplingParameters
from schemas.codes import NackReason, Phase
from schemas.engine import StepTimeFit
from schemas.fleet import ModelCard
from schemas.frames import Entry
from schemas.handoff import OfferHandoff

#: (request id, attempt)
JobKey = tuple[str, int]
Params = Mapping[str, str | int | None]
SchedulingMode = Literal["latency_optimized", "balanced", "throughput_optimized"]


@dataclass(frozen=True, slots=True)
class KvSource:
    """Where the KV of a decode job comes from: what the offer said."""

    transfer_id: str
    sender: str
    tokens: int
    bytes_total: int
    params: Params = field(default_factory=dict)

    @classmethod
    def of(cls, offer: OfferHandoff) -> "KvSource":
        return cls(offer.transfer_id, offer.sender, offer.tokens, offer.bytes_total, offer.params)


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt. ``sampling.n`` is its number of choices.

    ``max_tokens`` counts the emitted tokens too, and the first index of a choice is how many it has
    (``components/domain/bodies.py``). ``page_hashes`` name the prompt's full pages of 16 tokens.
    """

    request_id: str
    attempt: int
    phase: Phase
    prompt: Sequence[int]
    sampling: SamplingParameters
    emitted: Mapping[int, Emitted] = field(default_factory=dict)
    page_hashes: tuple[int, ...] = ()
    kv: KvSource | None = None
    #: The worker that has the other half of this request, if any.
    peer: str | None = None

    @property
    def key(self) -> JobKey:
        return self.request_id, self.attempt

    def with_kv(self, kv: KvSource) -> "Job":
        """The same job, its KV coming from elsewhere."""
        return replace(self, phase="decode", kv=kv)

    def alone(self) -> "Job":
        """The same job, computing its prompt itself."""
        return replace(self, phase="aggregated", kv=None)

    @property
    def open_choices(self) -> list[int]:
        """Choices that need more tokens, or at least their end said."""
        done = {choice for choice, emitted in self.emitted.items() if emitted.finished}
        return [choice for choice in range(self.sampling.n) if choice not in done]

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV a prefill computes and hands over.

        With several choices only the prompt is common to them; what each has emitted is computed
        where it decodes.
        """
        alone = self.emitted.get(0) if self.sampling.n == 1 else None
        return len(self.prompt) + (len(alone.token_ids) if alone else 0)


class EngineRefused(Exception):
    """The engine does not take this job; ``nack`` says to the router why."""

    def __init__(self, nack: NackReason, detail: str = "") -> None:
        super().__init__(f"{nack}: {detail}" if detail else nack)
        self.nack: NackReason = nack


# What an engine reports.


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prefill job is done. Its pages stay until ``release``.

    ``params`` is for the engine that will fetch them; nobody on the way reads it.
    """

    key: JobKey
    tokens: int
    pages: int
    bytes_total: int
    cached_tokens: int
    params: Params


@dataclass(frozen=True, slots=True)
class Moved:
    """What ``send_kv`` began is done."""

    key: JobKey
    bytes_moved: int


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """What ``send_kv`` began has failed; nothing reads the pages any more."""

    key: JobKey
    detail: str = ""


@dataclass(frozen=True, slots=True)
class KvArrived:
    """A decode engine that pulls has the KV of this job."""

    key: JobKey
    bytes_moved: int


@dataclass(frozen=True, slots=True)
class KvFailed:
    """A decode engine that pulls could not get or use the KV of this job."""

    key: JobKey
    detail: str = ""


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The engine lost this job. It holds nothing for it any more, and no entry will follow."""

    key: JobKey
    detail: str = ""


@dataclass(frozen=True, slots=True)
class JobRejected:
    """What the request asks for can be honoured by no engine of this kind: do not try elsewhere.

    ``param`` is OpenAI's name of what is wrong. The engine holds nothing for the job any more.
    """

    key: JobKey
    param: str


EngineEvent = Prefilled | Moved | MoveFailed | KvArrived | KvFailed | JobFailed | JobRejected


class Sink(Protocol):
    """Where an engine puts what came out, once per engine step, in order.

    ``entries`` have the layout of ``schemas.frames``: for each choice that went on in this step its
    new ids, the text that became certain with them, logprobs as ``{"logprobs": [per id [[id,
    logprob, text] of the chosen token, then of the likeliest ones]]}``, and with its last token
    ``finish``. A choice that was complete from the start gives one entry, ``finish`` without ids.
    Called in the event loop's thread and never from inside a call to the engine.
    """

    def __call__(self, entries: list[Entry], events: list[EngineEvent]) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One look at an engine, as far as it knows itself; all but the last group are 0 when idle.

    ``running`` and ``waiting`` count sequences (one per choice), pages are of 16 tokens.
    """

    running: int
    waiting: int
    queued_tokens: int
    kv_pages_used: int

    kv_pages_total: int
    seqs_max: int
    watermark: int
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    predicted_step_ms: float = 0.0
    predicted_wait_ms: float = 0.0
    capacity_tokens_per_s: float = 0.0
    scheduling_mode: SchedulingMode = "balanced"
    step_fit: StepTimeFit | None = None
    #: Prompt tokens whose KV came from another engine, since the start.
    external_hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do at all. ``context_tokens_max`` bounds prompt plus output."""

    phases: frozenset[Phase]
    context_tokens_max: int
    kv_pages_total: int
    kv_bytes_per_token: int


class Engine(Protocol):
    """One engine. All calls come from the event loop's thread.

    Only ``start``, ``stop`` and what operators ask for (``pause`` and what follows it) wait. An
    engine that cannot do one of the latter raises ``EngineRefused("unsupported")``.
    """

    async def start(self, sink: Sink) -> None:
        """Return when jobs may be submitted. Raises ``CannotStart`` when something is missing."""

    async def stop(self) -> None:
        """End every job without a word and free everything. Also after a failed start; twice."""

    @property
    def capabilities(self) -> Capabilities:
        """Fixed from the end of ``start`` on."""
        ...

    @property
    def watermark(self) -> int:
        """Engine steps since the start: moves while there is work and the engine is well."""
        ...

    @property
    def running(self) -> int:
        """Sequences that an engine step would move on: with any, ``watermark`` has to move."""
        ...

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        ...

    def model_card(self) -> ModelCard:
        """What a gateway needs to serve the model."""
        ...

    def load(self) -> EngineLoad:
        """A snapshot, at most an engine step old."""
        ...

    def submit(self, job: Job) -> None:
        """Take a job; what comes of it goes to the sink. Raises ``EngineRefused``, keeping nothing.

        A decode job whose ``kv`` is set waits for its bytes and holds a seat in no queue before.
        One key is in use once at a time.
        """

    def kv_arrived(self, key: JobKey) -> None:
        """The bytes of a decode job are here, in a buffer of the agent's side of the link.

        An engine that pulls has said so itself and ignores this. An unknown key changes nothing.
        """

    def send_kv(self, key: JobKey, peer: str) -> None:
        """Move the KV of a prefilled job to the engine of ``peer``; ends with Moved or MoveFailed.

        An unknown key changes nothing.
        """

    def stop_sending(self, key: JobKey) -> None:
        """Nothing reads the pages of this job any more when this returns; no event follows."""

    def release(self, key: JobKey) -> None:
        """Free the pages of a prefilled job. Harmless twice."""

    def abort(self, key: JobKey) -> None:
        """Nobody wants the job any more, in whatever state: no entry and no event follow.

        Its seat and pages are free within one engine step. An unknown key changes nothing.
        """

    async def pause(self, *, keep: bool) -> None:
        """Make no more steps: what runs is frozen (``keep``), or lost with a ``JobFailed`` each.

        Jobs are still taken and wait. ``running`` is 0 meanwhile: nobody is to blame.
        """

    async def resume(self) -> None:
        """Go on after ``pause``."""

    async def sleep(self, level: int) -> None:
        """Give the GPU's memory back. 1 keeps the weights on the host, 2 drops them.

        What runs is lost with a ``JobFailed`` each, and the prefix cache with it.
        """

    async def wake(self) -> None:
        """Undo ``sleep``."""

    async def reset_prefix_cache(self) -> bool:
        """Forget the cached pages; False, and nothing is forgotten, when some are in use."""
        ...
