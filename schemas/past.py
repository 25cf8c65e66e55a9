"""Questions about the past: the fleet at an instant, why a request went where it went, and what
another policy would have done.

Instants are milliseconds since 1970 by the clock of whoever wrote the record.
"""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.codes import RequestStep, Role
from schemas.fleet import EngineEntry, FleetRegistered
from schemas.message import Message, Part

#: Why a question about the past has no answer; ``detail`` beside it says it in words.
PastRefusal = Literal[
    "history_unavailable", "bad_policy", "bad_cursor", "no_such_bundle", "too_much"
]

#: A detail of a step: numbers, names, or a list of them.
Value = str | int | float | list[str | int | float | None] | None


class ProcessThen(Part):
    """One process at an instant, by the registry's record of who came and who left."""

    component: str
    instance: str
    process_epoch: int
    host: str
    joined_ms: int


class WaitingThen(Part):
    """A request in a scheduler's queue, in its order."""

    request_id: str
    tenant: str
    attempt: int
    prompt_tokens: int
    waited_ms: int


class PlacedThen(Part):
    """A request at its workers."""

    request_id: str
    tenant: str
    attempt: int
    worker: str
    prefill_worker: str | None = None


class CoreThen(Part):
    """One core as its journal rebuilds it: ``entry`` is the last one before the instant.

    ``whole`` False: entries between the snapshot and the instant are missing.
    """

    component: str
    instance: str
    process_epoch: int
    entry: int
    whole: bool
    age_ms: int = Field(ge=0)


class ShowInstant(Message):
    """How was the fleet at ``at_ms``?"""

    schema_id: ClassVar[str] = "instant.show.v1"

    at_ms: int = Field(ge=0)


class ShowInstantReply(Message):
    """The fleet as it was: who lived, what each engine had said last, what waited, what ran.

    ``read`` names, per stream, the sequence of the last message that belongs to the instant.
    ``notes`` say what the history does not hold any more.
    """

    schema_id: ClassVar[str] = "instant.show_reply.v1"

    at_ms: int
    processes: tuple[ProcessThen, ...] = ()
    engines: tuple[EngineEntry, ...] = ()
    registered: tuple[FleetRegistered, ...] = ()
    cores: tuple[CoreThen, ...] = ()
    waiting: tuple[WaitingThen, ...] = ()
    placed: tuple[PlacedThen, ...] = ()
    read: dict[str, int] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refusal: PastRefusal | None = None
    detail: str = ""


class StepThen(Part):
    """One step of a request's life. ``since_ms`` counts from the first one."""

    step: RequestStep
    attempt: int
    source: str
    at_ms: int
    since_ms: int
    detail: dict[str, Value] = Field(default_factory=dict)


class ConsideredCandidate(Part):
    """One engine that could have been chosen, with what was known of it then.

    ``state_seq`` and ``state_age_ms`` name the report it was judged on. ``cost_ms`` is the engine
    model's: to the first token for who computes the prompt, one step for who only writes, the sum
    for who does both.
    """

    worker: str
    chosen: bool
    terms: dict[str, Value]
    state_seq: int
    state_age_ms: int
    cost_ms: float | None = None


class Choice(Part):
    """One choice among engines. ``saved_ms``: best alternative's cost less the chosen one's.

    Positive: the choice was the cheaper one. None where there was no alternative.
    """

    attempt: int
    policy: str
    what: Role
    candidates: tuple[ConsideredCandidate, ...]
    best_alternative: str | None = None
    saved_ms: float | None = None


class ExplainRequest(Message):
    """Why did this request go where it went, and where did its time go?

    With ``tenant`` only a request of that tenant is known.
    """

    schema_id: ClassVar[str] = "request.explain.v1"

    request_id: str = Field(min_length=1, max_length=64)
    tenant: str | None = None


class ExplainRequestReply(Message):
    """``found`` False: the history has no step of it (any more).

    ``phases_ms``: queued, dispatch, prefill, handoff, decode, total, as far as they were reached.
    """

    schema_id: ClassVar[str] = "request.explain_reply.v1"

    request_id: str
    found: bool
    model: str = ""
    tenant: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    outcome: str = ""
    attempts: int = 0
    queue_ms: float | None = None
    phases_ms: dict[str, float] = Field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    steps: tuple[StepThen, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: PastRefusal | None = None
    detail: str = ""


class ReadPast(Message):
    """What happened from ``from_ms`` up to ``to_ms``, in the order of time, after a cursor."""

    schema_id: ClassVar[str] = "past.read.v1"

    from_ms: int = Field(ge=0)
    to_ms: int = Field(ge=0)
    streams: tuple[str, ...] = ()
    request_id: str | None = None
    limit: int = Field(default=500, ge=1, le=2000)
    cursor: str = ""


class Happened(Part):
    """One thing that happened, in words."""

    at_ms: int
    stream: str
    seq: int
    source: str
    what: str
    text: str


class ReadPastReply(Message):
    """``cursor`` is empty when nothing follows."""

    schema_id: ClassVar[str] = "past.read_reply.v1"

    events: tuple[Happened, ...] = ()
    cursor: str = ""
    refusal: PastRefusal | None = None
    detail: str = ""


class ReplayJournal(Message):
    """Run the journal from ``from_ms`` to ``to_ms`` through the same cores.

    ``order`` is a scheduler's policy, ``route`` a router's; without either the recorded ones decide
    again, and must decide the same.
    """

    schema_id: ClassVar[str] = "journal.replay.v1"

    from_ms: int = Field(default=0, ge=0)
    to_ms: int = Field(default=2**53, ge=0)
    order: str | None = None
    route: str | None = None


class LifeReplayed(Part):
    """One life of one core owner. ``exact``: every decision came out again, bit for bit."""

    component: str
    instance: str
    process_epoch: int
    entries: int
    inputs: int
    decisions: int
    exact: bool
    first_mismatch: int | None = None
    missing: int = 0


class Difference(Part):
    """A request that another policy would have treated differently, judged on the recorded state.

    ``effect_ms``: what the engine model says the other choice costs, less what was chosen.
    """

    request_id: str
    attempt: int
    kind: Literal["placed", "order"]
    recorded: str
    instead: str
    effect_ms: float | None = None


class ReplayJournalReply(Message):
    """``compared`` decisions were also taken by the other policy, ``different`` came out otherwise.

    At most 200 differences are listed; ``effect_ms_mean`` is over all of them that have one.
    """

    schema_id: ClassVar[str] = "journal.replay_reply.v1"

    lives: tuple[LifeReplayed, ...] = ()
    policy: str = ""
    compared: int = 0
    different: int = 0
    effect_ms_mean: float | None = None
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: PastRefusal | None = None
    detail: str = ""


class ExportPast(Message):
    """The past between two instants as one bundle, piece by piece: ask from ``offset`` 0 on.

    ``bundle`` names the one that a first answer began; it is kept for some minutes.
    """

    schema_id: ClassVar[str] = "past.export.v1"

    from_ms: int = Field(default=0, ge=0)
    to_ms: int = Field(default=2**53, ge=0)
    bundle: str = ""
    offset: int = Field(default=0, ge=0)


class ExportPastReply(Message):
    """Bytes ``offset ..`` of ``total`` of the file; the last piece ends at ``total``."""

    schema_id: ClassVar[str] = "past.export_reply.v1"

    bundle: str = ""
    total: int = 0
    offset: int = 0
    data: bytes = b""
    refusal: PastRefusal | None = None
    detail: str = ""
