"""One attempt at this worker, from its dispatch to its end."""

from dataclasses import dataclass
from typing import Literal

from components.domain.bodies import Body
from components.domain.handoff import Pairing
from components.domain.pages import pages_for, unpack_hashes
from components.worker.engine import Job, JobKey, KvSource
from schemas.attempt import AttemptReported, RunAttempt
from schemas.codes import AttemptState, FinishReason, NackReason

#: Its body is on its way; it waits for its KV; the engine has it; its pages wait to be handed over.
State = Literal["fetching", "waiting", "running", "holding"]


@dataclass(slots=True)
class Attempt:
    """See the top of the file. ``gateway_life`` is the life of the gateway in which it came."""

    run: RunAttempt
    gateway: str
    gateway_life: int | None
    since_s: float
    state: State = "fetching"
    job: Job | None = None
    #: Decode: where the KV comes from once it is offered, and what has happened to it so far.
    kv: KvSource | None = None
    kv_here: bool = False
    alone: bool = False
    choices_left: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    @property
    def key(self) -> JobKey:
        return self.run.card.request_id, self.run.card.attempt

    @property
    def pairing(self) -> Pairing | None:
        """The other half, when there is one."""
        run = self.run
        if run.phase == "aggregated" or run.transfer_id is None or run.peer is None:
            return None
        return Pairing(run.transfer_id, *self.key, run.peer, run.peer_epoch, run.card.traceparent)

    @property
    def kv_pages(self) -> int:
        """Pages that a decode receives, from the card: the body may not be here yet."""
        card = self.run.card
        return pages_for(card.prompt_tokens + (card.emitted_tokens if card.choices == 1 else 0))

    def take_body(self, body: Body) -> None:
        """The content is here: from now on there is a job."""
        hashes = unpack_hashes(self.run.card.page_hashes)
        self.job = Job(
            *self.key,
            phase=self.run.phase,
            prompt=body.prompt_token_ids,
            sampling=body.sampling,
            emitted=body.emitted,
            page_hashes=hashes[: len(body.prompt_token_ids) // 16],
            peer=self.run.peer,
        )
        self.choices_left = len(self.job.open_choices)

    def starts(self) -> dict[int, int]:
        """First index of each choice that will be written."""
        assert self.job is not None
        emitted = self.job.emitted
        return {
            choice: len(emitted[choice].token_ids) if choice in emitted else 0
            for choice in self.job.open_choices
        }

    def reported(
        self,
        state: AttemptState,
        worker: str,
        worker_epoch: int,
        nack: NackReason | None = None,
        finish: FinishReason | None = None,
    ) -> AttemptReported:
        """How it fares."""
        run = self.run
        return AttemptReported(
            request_id=run.card.request_id,
            attempt=run.card.attempt,
            worker=worker,
            worker_epoch=worker_epoch,
            phase=run.phase,
            state=state,
            router=run.router,
            router_epoch=run.router_epoch,
            dispatch_seq=run.dispatch_seq,
            nack=nack,
            finish=finish,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
        )
