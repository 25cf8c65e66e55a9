"""What the gateway knows of one live request, and what it wants done about it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from components.domain.bodies import Emitted
from components.domain.outcomes import Outcome
from components.gateway.streams import ChoiceStream, Finish
from schemas.attempt import StreamPosition
from schemas.codes import RefusalCode
from schemas.request import RequestCard

#: No scheduler has confirmed it; it stands in a queue; a worker has it; tokens came; it is over.
State = Literal["submitted", "queued", "dispatched", "streaming", "done"]


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request as the HTTP side hands it over: card (attempt 1, whole budget) and packed body.

    ``end_token_ids`` end a choice after ``min_tokens``, so that one whose last token arrived and
    whose end did not is not continued. ``arrived_s`` is when its first byte came.
    """

    card: RequestCard
    body: bytes
    arrived_s: float
    end_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0


@dataclass(slots=True)
class Request:
    """One live request. ``worker`` emits; ``worker_epoch`` names which life of it."""

    card: RequestCard
    body: bytes
    arrived_s: float
    deadline_s: float
    streams: list[ChoiceStream]
    end_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    state: State = "submitted"
    attempt: int = 1
    #: The highest attempt known to exist anywhere; the next one of ours is above it.
    attempt_seen: int = 1
    #: Name and epoch of the scheduler that has it, or was asked to.
    scheduler: tuple[str, int] | None = None
    unanswered: int = 0
    worker: str | None = None
    worker_epoch: int = 0
    prefill_worker: str | None = None
    router_epoch: int = 0
    dispatched_s: float = 0.0
    #: When the worker last said anything about this request.
    heard_s: float = 0.0
    first_token_s: float | None = None
    gap_since_s: float | None = None
    #: How often the worker has said that it does not know this attempt.
    unknown: int = 0
    interruptions: int = 0
    #: When time next has something to say about this request.
    check_s: float = 0.0

    @property
    def request_id(self) -> str:
        return self.card.request_id

    @property
    def trace(self) -> str | None:
        return self.card.traceparent

    @property
    def waits(self) -> bool:
        """Has no worker been named yet?"""
        return self.state in {"submitted", "queued"}

    @property
    def finished(self) -> bool:
        for stream in self.streams:  # noqa: SIM110  (once per token, so no generator)
            if stream.finish is None:
                return False
        return True

    @property
    def has_gap(self) -> bool:
        return any(s.has_gap for s in self.streams)

    @property
    def progressed(self) -> bool:
        """Did this attempt bring tokens that the body at the scheduler does not contain?"""
        return any(s.next_index > s.base for s in self.streams)

    @property
    def opaque(self) -> bool:
        """Did tokens come whose ids only count, so that no other worker can go on from them?"""
        return any(s.opaque for s in self.streams)

    @property
    def emitted_tokens(self) -> int:
        return sum(s.next_index for s in self.streams)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the engine found in its prefix cache."""
        found = max((s.finish.cached_tokens for s in self.streams if s.finish), default=0)
        return min(found, self.card.prompt_tokens)

    def emitted(self) -> Mapping[int, Emitted]:
        """What a continuation's body says of the choices that have begun."""
        return {
            choice: Emitted(stream.token_ids, stream.finish is not None)
            for choice, stream in enumerate(self.streams)
            if stream.next_index or stream.finish
        }

    def positions(self) -> list[StreamPosition]:
        """Where the unfinished choices stand."""
        return [
            StreamPosition(
                request_id=self.request_id,
                attempt=self.attempt,
                choice=choice,
                next_index=stream.next_index,
            )
            for choice, stream in enumerate(self.streams)
            if stream.finish is None
        ]

    def begin_attempt(self) -> None:
        """What comes next must continue exactly where each choice stands now."""
        for stream in self.streams:
            stream.begin_attempt()
        self.unanswered = self.unknown = 0

    def end_complete_choices(self) -> None:
        """The last id arrived and the word that it was the last did not: say it here."""
        for stream in self.streams:
            if stream.finish is not None:
                continue
            if stream.next_index >= self.card.output_tokens_max:
                stream.end(Finish("length"))
            elif stream.next_index > self.min_tokens and stream.token_ids[-1] in self.end_token_ids:
                stream.end(Finish("tool_calls" if stream.calls_tools else "stop"))


@dataclass(frozen=True, slots=True)
class Deliver:
    """Streams of this request have something new to ``take``."""

    request: Request


@dataclass(frozen=True, slots=True)
class End:
    """The request is over without all its tokens. ``retry_after_ms`` 0: do not try again."""

    request: Request
    code: RefusalCode
    detail: str = ""
    retry_after_ms: int = 0


GatewayOutcome = Outcome | Deliver | End
