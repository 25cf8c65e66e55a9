"""What the agent's core wants done with the engine and the streams, besides messages."""

from collections.abc import Mapping
from dataclasses import dataclass

from components.domain.outcomes import Ask, Count, Record, Send
from components.worker.engine import Job, JobKey
from schemas.codes import FinishReason


@dataclass(frozen=True, slots=True)
class Submit:
    """Give the job to the engine; answer with ``on_submitted`` or ``on_refused``."""

    job: Job


@dataclass(frozen=True, slots=True)
class Abort:
    """End the job in the engine, whatever it does."""

    key: JobKey


@dataclass(frozen=True, slots=True)
class KvHere:
    """The KV of a decode job is here."""

    key: JobKey


@dataclass(frozen=True, slots=True)
class SendKv:
    """Move the KV of a prefilled job to the engine of ``peer``."""

    key: JobKey
    peer: str


@dataclass(frozen=True, slots=True)
class StopSending:
    """Nothing may read the pages of this job any more."""

    key: JobKey


@dataclass(frozen=True, slots=True)
class ReleaseKv:
    """Free the pages of a prefilled job."""

    key: JobKey


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Tokens of this attempt will go to ``gateway``."""

    key: JobKey
    gateway: str


@dataclass(frozen=True, slots=True)
class BeginStream:
    """They begin at these indices, by choice."""

    key: JobKey
    starts: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class DropStream:
    """Nobody wants them any more."""

    key: JobKey


@dataclass(frozen=True, slots=True)
class FailStream:
    """They will not go on; the gateway hears why."""

    key: JobKey
    reason: FinishReason


WorkerOutcome = (
    Send
    | Ask
    | Record
    | Count
    | Submit
    | Abort
    | KvHere
    | SendKv
    | StopSending
    | ReleaseKv
    | OpenStream
    | BeginStream
    | DropStream
    | FailStream
)
